#!/usr/bin/env python3
"""Prints, side by side, what one step of issues/torchtitan-2387@tp2.ep2.etp1 in float64 costs: torchtitan 0.2.2 under
torchrun, torchtitan 0.2.2 forked after its import, and moegate's own step. Wall time from start to verdict or dump, the
median of three runs; peak memory is the largest resident set of a rank.

    tools/adapters/speed.py
"""

import json
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASE, LAYOUT, RELEASE, RUNS, MORE, GOAL = "issues/torchtitan-2387", "tp2.ep2.etp1", "0.2.2", 3, 10, 30.0


def descendants(pid):
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from descendants(int(child))


def peak_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def timed(command):
    """Wall seconds and the largest resident set in MiB of a command and what it starts."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks = [0]

    def watch():
        while process.poll() is None:
            for pid in (process.pid, *descendants(process.pid)):
                try:
                    peaks.append(peak_kib(pid))
                except OSError:  # it ended while we looked
                    pass
            time.sleep(0.002)

    def watch_calmly():
        while process.poll() is None:
            try:
                watch()
            except OSError:
                pass

    watcher = threading.Thread(target=watch_calmly)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - start
    watcher.join()
    if process.returncode not in (0, 1):
        raise SystemExit(f"speed.py: {' '.join(map(str, command))} ended with {process.returncode}:\n{output[-2000:]}")
    return seconds, max(peaks) / 1024


def median(make_command):
    runs = [timed(make_command(run)) for run in range(RUNS)]
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def main():
    made = subprocess.run([ROOT / "tools/adapters/environment.sh", f"torchtitan=={RELEASE}"], check=True, text=True,
                          stdout=subprocess.PIPE)
    python = made.stdout.splitlines()[-1]
    moegate, adapter = ROOT / "build/moegate", ROOT / "tools/adapters/torchtitan_step.py"
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        subprocess.run([moegate, "inputs", CASE, "--out", scratch / "problem"], check=True, stdout=subprocess.DEVNULL)

        def torchrun(run):
            return [python, "-m", "torch.distributed.run", "--nproc-per-node=2", adapter, "--release", RELEASE, "--problem",
                    scratch / "problem", "--layout", LAYOUT, "--out", scratch / f"torchrun-{run}"]

        def forked(steps):
            def command(run):
                path = scratch / f"steps-{steps}-{run}.json"
                path.write_text(json.dumps({"schema": 1, "deadline_s": 60, "steps": [
                    {"id": CASE, "problem": str(scratch / "problem"), "layout": LAYOUT, "dtype": "float64", "options": {},
                     "out": str(scratch / f"forked-{steps}-{run}-{step}")} for step in range(steps)]}))
                return [python, adapter, "--release", RELEASE, "--steps", path]
            return command

        def own(backend):  # another seed than the case's own: one clean step, judged, and no planted faults
            return lambda run: [moegate, "run", f"{CASE}@{LAYOUT}", "--dtype=float64", f"--backend={backend}", "--seed=1"]

        under_torchrun = median(torchrun)
        first, many = median(forked(1)), median(forked(1 + MORE))
        rows = [("torchtitan under torchrun", *under_torchrun), ("torchtitan, import and one step", *first),
                ("torchtitan forked after import, one more step", (many[0] - first[0]) / MORE, many[1]),
                ("moegate --backend=gloo, judged", *median(own("gloo"))),
                ("moegate --backend=threads, judged", *median(own("threads")))]
    print(f"{'what':<48}{'wall':>9}{'peak memory':>14}{'torchrun /':>12}   goal")
    for what, seconds, memory in rows:
        ratio = under_torchrun[0] / seconds
        goal = "" if what.startswith("torchtitan") else f">= {GOAL:.0f}   {'met' if ratio >= GOAL else 'MISSED'}"
        print(f"{what:<48}{seconds * 1000:>6.0f} ms{memory:>10.0f} MiB{ratio:>11.1f}x   {goal}".rstrip())


if __name__ == "__main__":
    main()
