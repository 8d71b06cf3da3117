"""Answers the requests of `measure.py` for an engine, as `src/main.rs` does."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A call that takes this many seconds or more is not repeated during preparation.
SLOW = 1.0
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@dataclass
class Call:
    """`run` is timed. `result` reads what the last run gave."""

    run: Callable[[], object]
    result: Callable[[], np.ndarray]
    # Puts state back before the run of this number, outside of its time.
    reset: Callable[[int], None] = lambda number: None


def timed(call: Call, number: int) -> float:
    call.reset(number)
    start = time.perf_counter()
    call.run()
    return time.perf_counter() - start


def answer(calls: dict[str, Call], version: str, implementations: dict, request: dict) -> dict:
    match request["do"]:
        case "about":
            return {"version": version}
        case "prepare":
            call = implementations[request["implementation"]](request["workload"])
            seconds = [timed(call, 0)]
            rows = call.result().reshape(-1, request["width"])[request["rows"]]
            if seconds[0] < SLOW:
                seconds.append(timed(call, 1))
            calls[request["key"]] = call
            return {"rows": rows.astype(float).tolist(), "seconds": seconds}
        case "time":
            call, first = calls[request["implementation"]], int(request["warm"])
            if first:
                timed(call, 0)
            return {"seconds": [timed(call, first + number) for number in range(request["calls"])]}
        case "forget":
            calls.clear()
            gc.collect()
    return {}


def serve(version: str, implementations: dict[str, Callable[[dict], Call]]):
    """Answers until standard input ends. What engines print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        try:
            reply = answer(calls, version, implementations, json.loads(line))
        except Exception as error:  # whatever it fails with is the answer
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)
