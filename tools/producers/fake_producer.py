#!/usr/bin/env python3
"""A producer for tests: does what a step's option `do` says, with dumps that `moegate run --dump` kept."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time


def say(**line):
    print(json.dumps(line), flush=True)


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def dump(step, do):
    """Writes a dump under a temporary name and gives it its own, as an adapter does."""
    fault = ".drop_d_gate_ED@tp" if do == "wrong" else ""
    source = step["options"].get("source", step["id"])
    out, part = pathlib.Path(step["out"]), pathlib.Path(step["out"] + ".part")
    shutil.copytree(f"{os.environ['FAKE_DUMPS']}/{source}.float64{fault}", part)
    if do == "half":
        (part / "rank-00001.safetensors").unlink()
    if do == "other-case":
        change_manifest(part, case="smoke/smoke")
    if do == "other-model":
        model = json.loads((part / "manifest.json").read_text())["model"]
        change_manifest(part, model=model | {"route_scale": 2.0})
    if do != "temporary":
        part.rename(out)


def run(i, step):
    do = step["options"]["do"]
    if do == "skip":
        say(step=i, skipped="there is no such layout in 1979")
    elif do == "error":
        say(step=i, error="rank 1 of 4 ended with exit status 1; its last words: no more memory")
    elif do == "crash":
        sys.exit("the framework gave up")
    elif do == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif do == "nonsense":
        print("step 0 went well")
    elif do == "silent":
        time.sleep(1000)
    else:
        dump(step, do)
        say(step=i, dump=step["out"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", required=True)
    parser.add_argument("--release", help="is given to the adapters of frameworks only")
    arguments = parser.parse_args()
    told = json.loads(pathlib.Path(arguments.steps).read_text())
    if pipe := os.environ.get("FAKE_PIPE"):
        # Lives as long as somebody lets it, and holds the pipe that tells who still lives.
        subprocess.Popen(["sleep", "1000"], close_fds=False)
        os.write(int(pipe), f"{arguments.release} {arguments.steps}\n".encode())
    say(ready=True)
    for i, step in enumerate(told["steps"]):
        run(i, step)


if __name__ == "__main__":
    main()
