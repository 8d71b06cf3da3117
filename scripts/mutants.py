#!/usr/bin/env python3
"""Makes mistakes in the CUDA kernels, one at a time, and shows that tests and the emulator's checks find them.

A mutant is a kernel with one mistake in its PTX: a barrier, a wait or a store is missing, a guard is negated, an address moves, a sum
is a difference, a constant is another. The driver of the package `emulator` makes it (`EMULATOR_MUTANT`), and a test of `cube_cuda`
runs on it, in a process of its own. A mutant is found by wrong values, by a check of the emulator, or because it does not end. One that
survives a short test runs through every other test that uses the same compiled kernel. One that survives those needs a reason in
`mutants.toml`.

    cargo test --workspace --all-features --no-run --test cube_cuda --test emulator
    python3 scripts/mutants.py --cache ~/.cache/burn-deepspeed --driver target/debug/deps/libcuda.so \\
        --tests target/debug/deps/cube_cuda-<hash> --write
    python3 scripts/mutants.py ... --check     # fails if one survives without a reason
    python3 scripts/mutants.py ... --quick     # the same with few mutants

Needs what cuda.py needs.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import tempfile
import time
import tomllib
import zlib

import cuda

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench/results/mutants.md"
REASONS = ROOT / "scripts/mutants.toml"
KINDS = ["barrier", "copy", "fence", "product", "store", "shuffle", "guard", "compare", "select", "address", "arithmetic", "constant"]
# What finds a mutant that the tests do not execute, or whose mistake makes no difference in any execution: nothing, but they cannot.
UNREACHED = "unreached"
IDLE = "idle"
# From what says least of a mutant to what says most; none of them finds it.
LEFT = [UNREACHED, IDLE, ""]
# Kinds of which every mutant runs.
ALL = ["barrier", "copy", "fence", "product", "store"]
QUICK = ["barrier", "copy"]
# Most of these that run with `--quick`, of each kind.
QUICK_MOST = 8
# Kinds of which none does: a store that is missing shows in every test, and constants are part of what operations do.
QUICK_NONE = ["store", "constant"]
# Mutants of a kind that is not run whole.
SAMPLE = 16
SEED = 1
# Seconds of processor time beyond ten times those of the kernel without a mistake.
PATIENCE = 2


@dataclasses.dataclass
class Instance:
    """A compiled kernel, and a short test that runs it."""

    label: str
    # The start of its name.
    kernel: str
    test: str
    # Which of the kernels with this name that the test loads, in this order.
    index: int = 0
    module: str = ""
    # Of each kind.
    candidates: dict[str, int] = dataclasses.field(default_factory=dict)
    # Processor time of the test.
    seconds: float = 0


def instances() -> list[Instance]:
    mma = "prefill_mma::cuda::a_small_problem"
    return [
        Instance("attend, bf16, copies in the background", "attend", f"{mma}_in_bf16_agrees_with_plain_loops"),
        Instance("attend, bf16, 32 rows in a warp", "attend", f"{mma}_in_bf16_agrees_with_plain_loops", 1),
        Instance("attend, f16, every mask", "attend", f"{mma}_with_every_mask_agrees_with_plain_loops"),
        Instance("attend, bf16, biases of large heads", "attend", f"{mma}_of_biases_agrees_with_plain_loops"),
        Instance("attend, f16, heads of 160, no copies", "attend", f"{mma}_of_large_heads_agrees_without_asynchronous_copies"),
        Instance("attend, f16, int8", "attend", f"{mma}_of_int8_agrees_with_plain_loops"),
        Instance("attend, plain loops, f32", "attend", "prefill_mma::a_small_problem_with_every_mask_agrees_with_plain_loops"),
        Instance("prefill, f32", "prefill", "prefill_simt::a_small_problem_agrees_with_plain_loops"),
        Instance("prefill, f32, every mask", "prefill", "prefill_simt::a_small_problem_with_every_mask_agrees_with_plain_loops"),
        Instance("prefill, int8", "prefill", "prefill_simt::a_small_problem_of_int8_agrees_with_plain_loops"),
        Instance("decode, f32", "decode_f", "decode::a_small_problem_agrees_with_plain_loops"),
        Instance("decode, f32, every mask", "decode_f", "decode::a_small_problem_with_every_mask_agrees_with_plain_loops"),
        Instance("decode, int8", "decode_f", "decode::splits_of_int8_add_up_even_where_some_are_empty", 2),
        Instance("tensor-core decode, f16", "decode_mma", "decode_mma::a_small_problem_agrees_with_plain_loops"),
        Instance("tensor-core decode, int8", "decode_mma", "decode_mma::a_small_problem_of_int8_agrees_with_plain_loops"),
        Instance("combine, f32", "combine", "decode::more_splits_than_lanes_add_up"),
        Instance("cache_write, f32", "cache_write_f", "cache_write::rows_with_fewer_new_tokens_keep_their_other_slots"),
        Instance("cache_write_int8, f32", "cache_write_int8", "cache_write::rows_with_fewer_new_tokens_keep_their_other_slots_in_int8", 2),
        Instance("cache_write_int8, zeros and ties", "cache_write_int8", "cache_write::int8_rounds_as_a_division_does_and_shows_what_is_not_finite"),
        Instance("cache_write_int8, infinities", "cache_write_int8", "cache_write::int8_rounds_as_a_division_does_and_shows_what_is_not_finite", 2),
        Instance("cache_write_norm, f32", "cache_write_norm", "cache_write::rows_with_fewer_new_tokens_keep_their_other_slots_under_a_norm"),
        Instance("cache_write_squares, f32", "cache_write_squares", "cache_write::squares_of_all_heads_are_added_in_f32"),
        Instance("product by rows, f32", "product", "gemv::a_small_problem_by_rows_agrees_with_plain_loops"),
        Instance("product by rows, no planes", "product", "gemv::a_small_problem_by_rows_without_planes_agrees_with_plain_loops"),
        Instance("product by rows, int8", "product", "gemv::a_small_problem_of_int8_agrees_with_plain_loops"),
        Instance("product by columns, f32", "product", "gemv::a_small_problem_by_columns_agrees_with_plain_loops"),
        Instance("tensor-core product, f16", "product_mma", "gemv_mma::a_small_problem_agrees_with_plain_loops"),
        Instance("tensor-core product, int8", "product_mma", "gemv_mma::a_small_problem_of_int8_agrees_with_plain_loops"),
        Instance("product of blocks, Q4_0", "product_blocks_f", "gemv_blocks::a_small_problem_of_q4_0_agrees_with_plain_loops"),
        Instance("product of blocks, Q4_0, inside of words", "product_blocks_f", "gemv_blocks::a_small_problem_of_q4_0_that_begins_inside_of_a_word_agrees_with_plain_loops"),
        Instance("product of blocks, Q6_K", "product_blocks_f", "gemv_blocks::a_small_problem_of_q6_k_agrees_with_plain_loops"),
        Instance("product of blocks, Q4_K, no planes", "product_blocks_f", "gemv_blocks::a_small_problem_of_q4_k_without_planes_agrees_with_plain_loops"),
        Instance("tensor-core product of blocks, Q4_0", "product_blocks_mma", "gemv_blocks_mma::a_small_problem_of_q4_0_agrees_with_plain_loops"),
        Instance("tensor-core product of blocks, Q5_1", "product_blocks_mma", "gemv_blocks_mma::a_small_problem_of_q5_1_agrees_with_plain_loops"),
        Instance("tensor-core product of blocks, Q4_K", "product_blocks_mma", "gemv_blocks_mma::a_small_problem_of_q4_k_agrees_with_plain_loops"),
        Instance("tensor-core product of blocks, Q6_K", "product_blocks_mma", "gemv_blocks_mma::a_small_problem_of_q6_k_agrees_with_plain_loops"),
        Instance("tensor-core product of blocks, Q4_K, in parts", "product_blocks_mma", "gemv_blocks_mma::a_small_problem_in_parts_agrees_with_plain_loops"),
        Instance("dequantise", "dequantise", "dequantise::long_rows_are_folded_over_the_axes_of_the_grid"),
        Instance("norm, f32", "norm", "norm::many_rows_are_folded_over_the_axes_of_the_grid"),
        Instance("norm, long rows, f16", "norm", "norm::rows_too_long_for_registers_agree_with_plain_loops", 0),
        Instance("norm, long rows, no planes", "norm", "norm::rows_too_long_for_registers_agree_with_plain_loops", 1),
        Instance("pad, f32", "pad", "pad_transform::many_heads_are_folded_over_the_axes_of_the_grid"),
        Instance("softmax, f32, every mask", "softmax", "softmax::a_small_problem_with_every_mask_agrees_with_plain_loops"),
        Instance("softmax, long rows", "softmax", "softmax::long_rows_with_every_mask_agree_with_plain_loops"),
        Instance("softmax, no planes", "softmax", "softmax::long_rows_with_every_mask_agree_without_planes"),
    ]


@dataclasses.dataclass
class Mutant:
    """A mistake in an instance, and what came of it."""

    instance: Instance
    number: int
    kind: str
    before: str
    after: str
    # The line of CUDA; of a barrier, which one it is.
    source: str
    found: str = ""
    why: str = ""

    def key(self) -> str:
        """What it changes, without the numbers of registers, labels and variables."""
        return plain(f"{self.before} → {self.after} | {self.source}")


def plain(text: str) -> str:
    text = re.sub(r"%([a-z]+)\d+", r"%\1", re.sub(r"\$L__BB\w+", "L", text))
    return re.sub(r"\b(l_mut|l|shared_memory|buffer|[su]info|a)_\d+", r"\1", text)


class Laboratory:
    """Runs tests of `cube_cuda` on the driver."""

    def __init__(self, arguments: argparse.Namespace, folder: pathlib.Path):
        self.cache, self.driver, self.program = arguments.cache.resolve(), arguments.driver, arguments.tests.resolve()
        # One block at a time: mutants run next to each other.
        self.base = cuda.environment(self.cache, self.driver, threads=1)
        self.folder = folder
        self.lines: dict[str, list[str]] = {}
        # Runs of mutants, and what found them. The programs are part of what names a run.
        self.programs = f"{zlib.crc32(self.program.read_bytes(), zlib.crc32(self.driver.read_bytes())):08x}"
        self.journal = arguments.journal
        self.known: dict[str, str] = {}
        if self.journal and self.journal.exists():
            self.known = dict(line.split("\t") for line in self.journal.read_text().splitlines())

    def run(self, tests: list[str], options: list[str] = [], limit: int = 600, **settings: object) -> tuple[int, str, float]:
        """Status, what it printed, and seconds of processor time. Beyond the limit the process is killed."""
        variables = self.base | {f"EMULATOR_{name.upper()}": str(value) for name, value in settings.items()}
        with tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                [self.program, "--exact", *tests, "--test-threads", "1", *(["--include-ignored"] if tests else []), *options],
                env=variables | {"RUST_BACKTRACE": "0"},
                cwd=self.folder,
                stdout=printed,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        return process.returncode, text, usage.ru_utime + usage.ru_stime

    def candidates(self, test: str) -> tuple[dict[tuple[str, str], list[list[str]]], float]:
        """The candidates of every kernel that a test loads, by module and name in the order of loading, and what the test takes."""
        self.run([test])  # compiles what is missing
        with tempfile.NamedTemporaryFile("r") as file:
            status, printed, seconds = self.run([test], mutants=file.name)
            if status:
                raise SystemExit(f"{test} fails without a mistake:\n{printed[-3000:]}")
            found = collections.defaultdict(list)
            for line in file:
                module, kernel, *rest = line.rstrip("\n").split("\t")
                # A module may be loaded twice.
                if not found[module, kernel] or int(rest[0]) > int(found[module, kernel][-1][0]):
                    found[module, kernel].append(rest)
        return found, seconds

    def source(self, module: str, line: int) -> str:
        """A line of the CUDA source of a module."""
        if module not in self.lines:
            for path in (self.cache / "emulator/ptx").glob("*.ptx"):
                name = f"{zlib.crc32(path.read_bytes().rstrip(bytes(1))):08x}"
                if path.with_suffix(".cu").exists():
                    self.lines[name] = path.with_suffix(".cu").read_text().splitlines()
        lines = self.lines.get(module, [])
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def choose(laboratory: Laboratory, arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants that run. Those of some kinds are a sample: which ones, a hash of what they change decides."""
    chosen = []
    wanted = [instance for instance in instances() if re.search(arguments.only, instance.label)]
    tests = list(dict.fromkeys(instance.test for instance in wanted))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        loaded = dict(zip(tests, pool.map(laboratory.candidates, tests)))
    for instance in wanted:
        found, seconds = loaded[instance.test]
        names = [(module, name) for module, name in found if name.startswith(instance.kernel)]
        instance.module, name = names[instance.index]
        instance.seconds = seconds
        seen, ranked = collections.Counter(), collections.defaultdict(list)
        barriers = sum(kind == "barrier" for _, kind, *_ in found[instance.module, name])
        for number, kind, line, before, after in found[instance.module, name]:
            source = laboratory.source(instance.module, int(line))
            if kind == "barrier":
                source = f"barrier {len(ranked[kind]) + 1} of {barriers}"
            mutant = Mutant(instance, int(number), kind, before, after, source)
            seen[mutant.key()] += 1
            rank = zlib.crc32(f"{SEED} {seen[mutant.key()]} {mutant.key()}".encode())
            ranked[kind].append((rank, mutant.number, mutant))
        instance.candidates = {kind: len(mutants) for kind, mutants in ranked.items()}
        for kind, mutants in sorted(ranked.items(), key=lambda item: KINDS.index(item[0])):
            most = len(mutants)
            if arguments.quick:
                most = QUICK_MOST if kind in QUICK else 0 if kind in QUICK_NONE else 1
            elif kind not in ALL:
                most = arguments.sample
            chosen += [mutant for _, _, mutant in sorted(mutants)[:most]]
    return chosen


def found_by(laboratory: Laboratory, mutant: Mutant, tests: list[str], seconds: float) -> str:
    """What finds a mutant in these tests, or nothing; from the journal, if they ran on it before."""
    named = f"{mutant.instance.kernel}@{mutant.instance.module}:{mutant.number}"
    run = " ".join([laboratory.programs, named, f"{zlib.crc32(f'{mutant.before} → {mutant.after}'.encode()):08x}", *tests])
    if run not in laboratory.known:
        laboratory.known[run] = judged(laboratory, mutant, named, tests, int(10 * seconds) + PATIENCE)
        if laboratory.journal:
            with laboratory.journal.open("a") as file:
                file.write(f"{run}\t{laboratory.known[run]}\n")
    return laboratory.known[run]


def judged(laboratory: Laboratory, mutant: Mutant, named: str, tests: list[str], limit: int) -> str:
    """Runs tests on a mutant, up to a limit in seconds: what finds it, or nothing."""
    status, printed, _ = laboratory.run(tests, limit=limit, mutant=named)
    if "emulator: mutant " not in printed:
        raise SystemExit(f"mutant {mutant.number} of {mutant.instance.label} was not made:\n{printed[-3000:]}")
    if re.search(r"^emulator: kernel `\w+`, `", printed, re.MULTILINE):
        raise SystemExit(f"mutant {mutant.number} of {mutant.instance.label} cannot be loaded:\n{printed[-3000:]}")
    if re.search(r"^emulator: kernel `\w+`, block", printed, re.MULTILINE):
        return "check"
    if -status in [signal.SIGXCPU, signal.SIGKILL]:
        return "limit"
    if status:
        return "values"
    if "emulator: mutant reached" not in printed:
        return UNREACHED
    return "" if "emulator: mutant had an effect" in printed else IDLE


def users(laboratory: Laboratory, pool: concurrent.futures.Executor) -> dict[str, list[tuple[float, str]]]:
    """The tests that load each module and what they take, the shortest first."""
    names = [
        set(re.findall(r"^(\S+): test$", laboratory.run([], ["--list", "--format", "terse", *more])[1], re.MULTILINE))
        for more in [[], ["--ignored"]]
    ]
    found = collections.defaultdict(list)
    tests = sorted(names[0] - names[1])
    for name, (kernels, seconds) in zip(tests, pool.map(laboratory.candidates, tests)):
        for module, _ in kernels:
            found[module].append((seconds, name))
    return {module: sorted(tests) for module, tests in found.items()}


def run(laboratory: Laboratory, mutants: list[Mutant], arguments: argparse.Namespace):
    """Runs every mutant, and those that survive through the other tests of their module."""

    def first(mutant: Mutant):
        mutant.found = found_by(laboratory, mutant, [mutant.instance.test], mutant.instance.seconds)

    def again(mutant: Mutant):
        for seconds, name in known.get(mutant.instance.module, []):
            if name != mutant.instance.test and mutant.found in LEFT:
                # One that survived once is not unreached.
                found = found_by(laboratory, mutant, [name], seconds)
                mutant.found = max(found, mutant.found, key=LEFT.index) if found in LEFT else found

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(first, mutants))
        left = [mutant for mutant in mutants if mutant.found in LEFT]
        if left and not (arguments.quick or arguments.short):
            known = users(laboratory, pool)
            list(pool.map(again, left))


def explain(mutants: list[Mutant]) -> list[str]:
    """Finds the reasons of those that survive. Returns the reasons that none of them has."""
    reasons = tomllib.loads(REASONS.read_text())["survivor"]
    unused = list(range(len(reasons)))
    for mutant in mutants:
        for number, reason in enumerate(reasons) if not mutant.found else []:
            fits = re.match(reason["kernel"], mutant.instance.label) and mutant.kind in reason["kinds"]
            changes = [mutant.key(), f"{mutant.before} → {mutant.after}"]
            if fits and any(re.search(reason["change"], change) for change in changes):
                mutant.why = reason["why"]
                unused = [other for other in unused if other != number]
                break
    return [f"{reasons[number]['kernel']}, {reasons[number]['change']}" for number in unused]


def table(mutants: list[Mutant], short: bool) -> str:
    """The results as Markdown."""
    others = "did not run in the others" if short else "ran in every other test of its kernel that is not ignored"
    lines = [
        "# Mutants of the CUDA kernels",
        "",
        "Mistakes made in the PTX of the kernels, one at a time, and what finds them: wrong values in a test, a check of the emulator, or",
        "that the kernel does not end. Written by `scripts/mutants.py`, which says how. Barriers, copies, tensor-core products and",
        f"stores are changed one and all; of the other kinds a hash with seed {SEED} chooses some. The number of a mutant is its place",
        "among the candidates of its kernel, of the module that was compiled here.",
        f"Each ran in a short test of its kernel; one that survived there {others}.",
        "Those that are not reached are in branches that no test of the kernel takes: most are copies of unrolled loops.",
        "Those without effect were executed, and each time the statement did what it did without the mistake: no lane is at a limit,",
        "a sum begins with zero anyway, or a branch is never taken.",
        "",
        "| kernel | kind | candidates | mutants | found by values | by a check | by the limit | not reached | without effect | survive |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups = collections.defaultdict(list)
    for mutant in mutants:
        groups[mutant.instance.label, KINDS.index(mutant.kind)].append(mutant)
    total = collections.Counter()
    for (label, kind), group in groups.items():
        found = collections.Counter(mutant.found for mutant in group)
        total += found
        counts = " | ".join(str(found[how]) for how in ["values", "check", "limit", *LEFT])
        lines.append(f"| {label} | {KINDS[kind]} | {group[0].instance.candidates[KINDS[kind]]} | {len(group)} | {counts} |")
    counts = " | ".join(str(total[how]) for how in ["values", "check", "limit", *LEFT])
    lines += [f"| all | | | {len(mutants)} | {counts} |", "", "## Survivors", ""]
    by_reason = collections.defaultdict(list)
    for mutant in mutants:
        if not mutant.found:
            by_reason[mutant.why or "**No reason is known.**"].append(mutant)
    for why, group in sorted(by_reason.items()):
        lines += [f"### {len(group)}: {why}", "", "| kernel | number | kind | statement | becomes | CUDA |", "| --- | --- | --- | --- | --- | --- |"]
        for mutant in group:
            cells = [f"`{text}`".replace("|", "\\|") if text else "" for text in [mutant.before, mutant.after, mutant.source]]
            lines.append(f"| {mutant.instance.label} | {mutant.number} | {mutant.kind} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler and what it compiled")
    parser.add_argument("--driver", type=pathlib.Path, required=True, help="`libcuda.so` of the package `emulator`")
    parser.add_argument("--tests", type=pathlib.Path, required=True, help="the program of the tests `cube_cuda`")
    parser.add_argument("--only", default="", help="kernels whose label has a match of this regular expression")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run at the same time (default: 2)")
    parser.add_argument("--short", action="store_true", help="do not run what survives its short test through the other tests")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"mutants of a kind that is not run whole (default: {SAMPLE})")
    parser.add_argument("--journal", type=pathlib.Path, help="file that keeps what was found, so that another run of the same programs goes on")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write bench/results/mutants.md")
    action.add_argument("--print", action="store_true", help="print the table")
    action.add_argument("--check", action="store_true", help="fail if a mutant survives without a reason")
    action.add_argument("--quick", action="store_true", help="the same with up to 8 barriers and copies, no stores and constants, one of every other kind, and short tests")
    arguments = parser.parse_args()

    with cuda.configured(cuda.EXACT) as folder:
        laboratory = Laboratory(arguments, folder)
        mutants = choose(laboratory, arguments)
        run(laboratory, mutants, arguments)
    unused = explain(mutants)
    text = table(mutants, arguments.short)
    if arguments.write:
        TABLE.write_text(text)
    if arguments.print:
        print(text)
    left = [mutant for mutant in mutants if not mutant.found]
    if arguments.write:
        print("".join(f"no survivor has the reason of {reason}\n" for reason in unused), end="")
    print(f"{len(mutants)} mutants, of which {len(left)} survive")
    unknown = [mutant for mutant in left if not mutant.why]
    for mutant in unknown:
        print(f"{mutant.instance.label}, {mutant.kind} {mutant.number}: {mutant.key()}")
    if unknown:
        raise SystemExit(f"{len(unknown)} mutants survive without a reason in {REASONS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
