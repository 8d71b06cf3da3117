"""The plot of the report: ratios to every peer, share of the limits, time by length; one SVG without a library."""

import html
import itertools
import math
from collections.abc import Callable

# A colour for each project, a shape for each of its implementations; the engines share one.
MARKS = {
    "ours-ndarray": ("#111111", "circle"),
    "sdpa": ("#e4572e", "circle"),
    "unfused": ("#e4572e", "square"),
    "flex-attention": ("#e4572e", "diamond"),
    "candle-flash": ("#8e44ad", "circle"),
    "candle-plain": ("#8e44ad", "square"),
    "burn-ndarray": ("#2e8b57", "circle"),
    "burn-flex": ("#2e8b57", "diamond"),
    "transformers-sdpa": ("#1f77b4", "circle"),
    "transformers-static": ("#1f77b4", "diamond"),
    "transformers-eager": ("#1f77b4", "square"),
    "int8": ("#1f77b4", "triangle"),
    "ort-f32": ("#d4a017", "circle"),
    "ov-f32": ("#d4a017", "square"),
    "ggml-f32": ("#d4a017", "diamond"),
    "rten-f32": ("#d4a017", "triangle"),
}
WIDTH, TOP, ROW = 1000, 60, 19
# Left edge and width of the panels: ratios and shares with few threads, then with many.
RATIOS, SHARES = ((245, 245), (505, 245)), ((770, 100), (888, 100))
# Where the axis of the shares ends, so that noise above 100 % shows.
MOST = 1.25


class Canvas:
    def __init__(self):
        self.parts = []

    def text(self, x: float, y: float, text: str, anchor: str = "start", size: int = 11, weight: str = "normal"):
        attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        self.parts.append(f"<text {attributes}>{html.escape(text)}</text>")

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd", width: float = 1):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def mark(self, x: float, y: float, implementation: str, size: float = 4):
        colour, shape = MARKS[implementation]
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}" fill-opacity="0.85"/>')
            return
        corners = {
            "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
            "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
            "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
        }[shape]
        points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
        self.parts.append(f'<polygon points="{points}" fill="{colour}" fill-opacity="0.85"/>')

    def svg(self, height: float) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">'
        return "\n".join([head, f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>', *self.parts, "</svg>\n"])


def logarithmic(low: float, high: float, start: float, length: float) -> Callable[[float], float]:
    """The place of a value between `low` and `high` on an axis; a negative length runs upwards."""
    return lambda value: start + length * math.log(value / low) / math.log(high / low)


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … within the range."""
    steps = (factor * 10.0**power for power in range(-4, 6) for factor in (1, 2, 5))
    return [step for step in steps if low <= step <= high]


def grid(canvas: Canvas, result) -> float:
    """A line for each workload: ratios on the left, shares on the right. Returns where it ends."""
    workloads = [workload for group in ("attention", "layer", "encoder") for workload in result.of(group)]
    bottom = TOP + ROW * len(workloads)
    peers = lambda workload: result.f32_peers(workload["group"])  # noqa: E731
    ratios = [
        ratio for workload in workloads for threads in result.threads for peer in peers(workload)
        if (ratio := result.ratio(workload["name"], threads, peer))
    ]  # fmt: skip
    low, high = min([0.8, *ratios]) / 1.2, max([4, *ratios]) * 1.2
    canvas.text(RATIOS[0][0], 18, "Time of a peer divided by ours: right of 1, ours is faster", size=13, weight="bold")
    canvas.text(SHARES[0][0], 18, "Share of the machine's limit", size=13, weight="bold")
    for at, workload in enumerate(workloads):
        y = TOP + ROW * (at + 0.5)
        canvas.text(RATIOS[0][0] - 8, y + 4, f"{workload['name']}: {workload['title']}"[:44], "end", size=10)
    for threads, (left, width), (share_left, share_width) in zip(result.threads, RATIOS, SHARES, strict=False):
        place = logarithmic(low, high, left, width)
        canvas.text(left, 38, f"{threads} thread{'s' * (threads > 1)}")
        canvas.text(share_left, 38, f"{threads} thread{'s' * (threads > 1)}")
        for tick in ticks(low, high):
            canvas.line(place(tick), TOP - 4, place(tick), bottom, "#333333" if tick == 1 else "#e4e4e4")
            canvas.text(place(tick), bottom + 14, f"{tick:g}", "middle", size=9)
        for tick in (0, 0.5, 1):
            x = share_left + share_width * tick / MOST
            canvas.line(x, TOP - 4, x, bottom, "#333333" if tick == 1 else "#e4e4e4")
            canvas.text(x, bottom + 14, f"{tick:.0%}", "middle", size=9)
        for at, workload in enumerate(workloads):
            y, name = TOP + ROW * (at + 0.5), workload["name"]
            for peer in peers(workload):
                if ratio := result.ratio(name, threads, peer):
                    canvas.mark(place(ratio), y, peer)
            if workload["limit"] is None:
                continue
            if share := result.share(workload, threads, "ours-ndarray"):
                canvas.bar(share_left, y - 5, share_width * min(share / MOST, 1), 10, "#9a9a9a")
            first = "sdpa" if workload["group"] == "attention" else "transformers-sdpa"
            if share := result.share(workload, threads, first):
                canvas.mark(share_left + share_width * min(share / MOST, 1), y, first, 3)
    y = bottom + 36
    shown = [name for name in MARKS if name in {peer for workload in workloads for peer in peers(workload)}]
    for at, name in enumerate(shown):
        x, line = 40 + 240 * (at % 4), y + 18 * (at // 4)
        canvas.mark(x, line - 4, name)
        canvas.text(x + 9, line, result.labels[name])
    x, line = 40 + 240 * (len(shown) % 4), y + 18 * (len(shown) // 4)
    canvas.bar(x - 6, line - 8, 12, 8, "#9a9a9a")
    canvas.text(x + 9, line, "burn-deepspeed on ndarray")
    return y + 18 * (len(shown) // 4 + 1)


def lengths(canvas: Canvas, result, top: float) -> float:
    """The rate by length, and its limit as a line."""
    threads, width, height = result.threads[-1], 400, 170
    panels = ((50, "prefill", "Causal prompt, 8 heads of 64: GFLOP/s"), (560, "decode", "One token, 32 heads of 128 over 8: GB/s"))
    for left, which, title in panels:
        workloads = [workload for workload in result.of("length") if workload["name"].startswith(which)]
        times = lambda name: [(workload, result.ms(workload["name"], threads, name)) for workload in workloads]  # noqa: B023, E731
        curves = {
            name: [(workload["keys"], result.rate(workload, ms)) for workload, ms in times(name) if ms]
            for name in ("ours-ndarray", "sdpa")
        }
        rates = [value for curve in curves.values() for _, value in curve]
        if not rates or len(workloads) < 2:
            continue
        limits = [(workload["keys"], limit) for workload in workloads if (limit := result.limit(workload, threads))]
        # A cache reads many times as fast as memory: its limit may leave the panel.
        ceiling = min(max((limit for _, limit in limits), default=0), 2 * max(rates))
        high, base = 1.1 * max(*rates, ceiling), top + 34 + height
        across = logarithmic(workloads[0]["keys"], workloads[-1]["keys"], left, width)
        canvas.text(left, top + 14, f"{title} by length, {threads} threads", size=12, weight="bold")
        step = next(step for step in ticks(1e-3, 1e5) if high / step <= 6)
        for tick in (step * at for at in range(int(high / step) + 1)):
            canvas.line(left, base - height * tick / high, left + width, base - height * tick / high)
            canvas.text(left - 6, base - height * tick / high + 3, f"{tick:g}", "end", size=9)
        for workload in workloads:
            canvas.text(across(workload["keys"]), base + 14, str(workload["keys"]), "middle", size=9)
        places = [(across(keys), base - height * min(limit / high, 1)) for keys, limit in limits]
        for start, end in itertools.pairwise(places):
            canvas.line(*start, *end, "#333333")
        if places:
            canvas.text(places[-1][0], places[-1][1] - 4, "limit", "end", size=10)
        for name, curve in curves.items():
            places = [(across(keys), base - height * value / high) for keys, value in curve]
            for start, end in itertools.pairwise(places):
                canvas.line(*start, *end, MARKS[name][0], 1.5)
            for place in places:
                canvas.mark(*place, name, 3)
    canvas.mark(50, top + height + 66, "ours-ndarray")
    canvas.text(59, top + height + 70, result.labels["ours-ndarray"])
    canvas.mark(250, top + height + 66, "sdpa")
    canvas.text(259, top + height + 70, result.labels["sdpa"])
    return top + height + 84


def svg(result) -> str:
    canvas = Canvas()
    bottom = grid(canvas, result)
    if result.of("length"):
        bottom = lengths(canvas, result, bottom + 10)
    return canvas.svg(bottom)
