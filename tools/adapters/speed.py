#!/usr/bin/env python3
"""Times one step of torchtitan and of moegate, side by side: wall time and peak memory.

Every row runs the same problem in float64, with gradients out of every rank, and is the median of N runs; the rows
take turns, so that a busy moment hits them all. torchtitan's rows end with the dump, moegate's with the verdict on it:
with --seed one clean step is judged and no fault is planted. A forked step is one more step of a process that has
imported torchtitan: the difference of a run of 11 steps and of 1, by 10. The memory is the peak resident set of the
largest process, a rank or what started it; threads share one process. Leave the machine otherwise idle.
Exit status: 0 every goal met; 1 one missed; 2 nothing could be measured.
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOAL = 30  # times less wall time than under torchrun
MORE_STEPS = 10


def run(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall seconds of `command`, and the peak MiB of the largest process of all that it started and waited for."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
        # An adapter that serves steps answers with the error of one, and ends well.
        if process.returncode != 0 or re.search(r'"(error|skipped)": ', text):
            print(f"speed.py: {' '.join(command)} ended with {process.returncode}: {text[-1000:]}", file=sys.stderr)
            sys.exit(2)
    return seconds, usage.ru_maxrss / 1024


def ranks_of(layout: str) -> int:
    return math.prod(int(size) for axis, size in re.findall(r"([a-z]+)(\d+)", layout)
                     if axis in ("dpr", "dp", "cp", "tp"))


def torchtitan_rows(python: str, arguments, problem: str, scratch: Path):
    script = str(ROOT / "tools/adapters/torchtitan_step.py")
    dump = iter(f"{scratch}/dump-{i}" for i in range(10**9))

    def steps(count: int) -> tuple[float, float]:
        path = scratch / "steps.json"
        step = {"id": "speed", "problem": problem, "layout": arguments.layout, "dtype": "float64", "options": {}}
        path.write_text(json.dumps({"deadline_s": 60, "steps": [{**step, "out": next(dump)} for _ in range(count)]}))
        return run([python, script, "--release", arguments.release, "--steps", str(path)])

    # `python -m` starts the torchrun of the PyTorch below the release, whose environment has no such script.
    one = ["--release", arguments.release, "--problem", problem, "--layout", arguments.layout, "--out"]

    def under_torchrun():
        torchrun = [python, "-m", "torch.distributed.run", "--standalone",
                    f"--nproc-per-node={ranks_of(arguments.layout)}"]
        return run([*torchrun, script, *one, next(dump)], {**os.environ, "OMP_NUM_THREADS": "1"})

    def forked():
        first, all_steps = steps(1), steps(1 + MORE_STEPS)
        return first, ((all_steps[0] - first[0]) / MORE_STEPS, all_steps[1])

    return under_torchrun, forked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="issues/torchtitan-2387")
    parser.add_argument("--layout", default="tp2.ep2.etp1")
    parser.add_argument("--release", default="0.2.2", help="of torchtitan")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--build", default="build", help="the build folder of moegate")
    arguments = parser.parse_args()
    moegate = str((ROOT / arguments.build / "moegate").resolve())
    python = subprocess.run([str(ROOT / "tools/adapters/environment.sh"), f"torchtitan=={arguments.release}"],
                            check=False, stdout=subprocess.PIPE, text=True)
    if python.returncode != 0:
        return 2  # it has said why
    # Memory, as moegate's own scratch folders are: a disk would be in the rows that write dumps.
    scratch = Path(tempfile.mkdtemp(prefix="moegate-speed-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        problem = str(scratch / "problem")
        run([moegate, "inputs", arguments.case, "--out", problem])
        under_torchrun, forked = torchtitan_rows(python.stdout.strip(), arguments, problem, scratch)

        def ours(backend):
            return run([moegate, "run", f"{arguments.case}@{arguments.layout}", "--dtype=float64", "--seed=1",
                        f"--backend={backend}"])

        rows = {name: [] for name in ("torchtitan under torchrun", "torchtitan forked, the process",
                                      "torchtitan forked, one more step", "moegate run --backend=gloo",
                                      "moegate run --backend=threads")}
        for _ in range(arguments.runs):
            for name, measured in zip(rows, (under_torchrun(), *forked(), ours("gloo"), ours("threads")), strict=True):
                rows[name].append(measured)
    finally:
        shutil.rmtree(scratch)
    return table(rows, arguments)


def table(rows: dict[str, list[tuple[float, float]]], arguments) -> int:
    print(f"{arguments.case}@{arguments.layout}, float64, {ranks_of(arguments.layout)} ranks, "
          f"torchtitan {arguments.release}, median of {arguments.runs} runs, load {os.getloadavg()[0]:.1f} "
          f"on {os.cpu_count()} cores")
    print(f"{'what':<34}{'wall time':>12}{'MiB at most':>12}{'torchrun is':>14}   goal")
    torchrun, all_met = None, True
    for name, runs in rows.items():
        seconds, mib = (statistics.median(one[i] for one in runs) for i in (0, 1))
        torchrun = torchrun or seconds
        times, goal = torchrun / seconds, ""
        if name.startswith("moegate"):
            all_met &= times >= GOAL
            goal = f">= {GOAL} times   {'met' if times >= GOAL else 'MISSED'}"
        print(f"{name:<34}{seconds * 1000:>9.0f} ms{mib:>12.0f}{times:>8.1f} times   {goal}")
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
