"""How `gpu_peers.py` times PyTorch's calls."""

import time

# Target for the total time of the calls of one measurement, in seconds.
SPAN = 0.01


class Stopwatch:
    """Times calls with CUDA's events, after a pause of the device that lets the host fill its queue."""

    def __init__(self, torch, quick: bool):
        self.torch, self.quick = torch, quick
        cycles = 20_000_000
        self.cycles_per_second = 1.0
        for _ in range(2):
            self.cycles_per_second = cycles / self.events(lambda: torch.cuda._sleep(cycles))

    def events(self, work, pause: int = 0) -> float:
        """Seconds on the device."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        if pause:
            self.torch.cuda._sleep(pause)
        start.record()
        work()
        end.record()
        self.torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall(self, work) -> float:
        start = time.perf_counter()
        work()
        self.torch.cuda.synchronize()
        return time.perf_counter() - start

    def read(self, calls: list) -> dict:
        """The times of one call, as `gpu_bench` gives them."""

        def several(count):
            for at in range(count):
                calls[at % len(calls)]()

        self.wall(lambda: several(1))
        latency = self.wall(lambda: several(1))
        if latency > SPAN:
            device = self.events(lambda: several(1))
            return {"median_us": device * 1e6, "wall_us": latency * 1e6, "latency_us": latency * 1e6}
        estimate = self.wall(lambda: several(4)) / 4
        count = 2 if self.quick else max(1, min(2000, int(SPAN / estimate)))
        device = wall = self.wall(lambda: several(count)) / count
        if wall < 200e-6:
            # The queue holds about 1000 launches, each of which takes the host about 4 µs.
            count = max(1, min(count, 256, int(4e-3 / wall)))
            device = self.events(lambda: several(count), int(1.3 * wall * count * self.cycles_per_second)) / count
        else:
            device = self.events(lambda: several(count)) / count
        return {"median_us": device * 1e6, "wall_us": wall * 1e6, "latency_us": latency * 1e6}


def matmul_rate(torch, stopwatch: Stopwatch, quick: bool) -> float:
    """Multiplications and additions per second, in a product of bf16 matrices of 8192 rows and columns; 0 if it fails."""
    size = 512 if quick else 8192
    try:
        left, right = (torch.empty(size, size, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1) for _ in range(2))
        calls = [lambda: torch.mm(left, right)]
        times = sorted(stopwatch.read(calls)["median_us"] for _ in range(5))
        return 2 * size**3 / times[2] * 1e6
    except Exception:  # noqa: BLE001: the roofline does without
        return 0.0
