"""Runs the ranks of an adapter's steps: forked after the framework's import, so that a sweep pays it once.

An adapter is a script that ends with `serve(framework)`. It is started in one of three ways:

    adapter.py --release 1.2 --steps steps.json           by `moegate run --producer`: all steps, one after the other
    adapter.py --release 1.2 --problem DIR --layout tp2.ep2.etp1 --out DUMP [--option KEY=VALUE]     one step by hand
    torchrun --nproc-per-node 2 adapter.py --release 1.2 --problem DIR --layout ... --out DUMP      the same, on
                                                                                                    torchrun's ranks

With --steps it prints JSON lines on its standard output: {"ready": true} after the import, then for every step, in
order, {"step": i, "dump": folder}, {"step": i, "skipped": why} or {"step": i, "error": why}.
"""

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from .errors import DumpError, Skip
from .layout import Layout

_LAST_WORDS = 2000  # bytes of a rank's output that are shown
_GRACE_S = 2.0  # from SIGTERM to SIGKILL
_SETTLE_S = 0.3  # from the first failure to the choice of the culprit: the first rank to end is often a victim
_PR_SET_PDEATHSIG = 1
_PEER_WENT = re.compile("Connection (closed|reset) by peer|Broken pipe")  # Gloo's words


@dataclass(frozen=True)
class Step:
    problem: str  # folder of `moegate inputs`
    layout: Layout
    dtype: torch.dtype
    out: str  # the dump's folder
    options: dict[str, str] = field(default_factory=dict)
    deadline_s: float = 60.0

    @property
    def device(self) -> str:
        return self.options.get("device", "cpu")


class Framework(Protocol):
    """What an adapter knows; one instance serves all steps."""

    @property
    def name(self) -> str: ...  # "torchtitan"

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]: ...  # option -> values it may have, the default first

    def load(self, release: str) -> None:
        """Imports the framework, once, before any rank is forked. Throws DumpError when it is another release."""

    def check(self, step: Step) -> None:
        """Throws Skip with one sentence when the release cannot run the step."""

    def run(self, step: Step) -> None:
        """On one rank, with the default process group there: runs the step and captures it into step.out."""


def installed_release(package: str, wanted: str) -> str:
    """`wanted`, where that is the release of `package` that this python has. Throws DumpError otherwise."""
    try:
        release = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DumpError(f"{package} is not installed here; use the python of `tools/adapters/environment.sh "
                        f"{package}=={wanted}`") from None
    if release != wanted:
        raise DumpError(f"{package} {release} is installed here, not {wanted}")
    return release


def serve(framework: Framework) -> None:
    """The main function of an adapter; returns its exit status by SystemExit."""
    arguments = _parse(framework)
    try:
        framework.load(arguments.release)
        if arguments.steps:
            _serve_steps(framework, arguments.steps)
        else:
            _run_by_hand(framework, arguments)
    except Skip as skip:
        sys.exit(f"skipped: {skip}")
    except DumpError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def _parse(framework):
    choices = "; ".join(f"{name}={'|'.join(values)}" for name, values in framework.options.items())
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--release", required=True, help=f"the release of {framework.name} that must be installed")
    parser.add_argument("--steps", help="a file with steps, as `moegate run --producer` writes it")
    parser.add_argument("--problem", help="a folder that `moegate inputs CASE --out DIR` wrote")
    parser.add_argument("--layout", help="such as dp2.tp2.ep4.etp1")
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32", "bfloat16"))
    parser.add_argument("--out", help="the dump's folder, which must not be there")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=choices)
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds that the step may take")
    arguments = parser.parse_args()
    if not arguments.steps and not (arguments.problem and arguments.layout and arguments.out):
        parser.error("give --steps, or --problem, --layout and --out")
    return arguments


def _options(framework, given: dict[str, str]) -> dict[str, str]:
    options = {name: values[0] for name, values in framework.options.items()}
    for name, value in given.items():
        if name not in options:
            raise DumpError(f"{framework.name} has no option {name}; use {', '.join(options) or 'none'}")
        if value not in framework.options[name]:
            raise DumpError(f"option {name} is {value}; use {', '.join(framework.options[name])}")
        options[name] = value
    return options


def _serve_steps(framework, path):
    described = json.loads(Path(path).read_text())
    # What the framework prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**line):
        print(json.dumps(line), file=answers, flush=True)

    answer(ready=True)
    for i, said in enumerate(described["steps"]):
        try:
            step = Step(problem=said["problem"], layout=Layout.parse(said["layout"]),
                        dtype=getattr(torch, said["dtype"]), out=said["out"], deadline_s=described["deadline_s"],
                        options=_options(framework, said.get("options", {})))
            framework.check(step)
            _run_ranks(framework, step)
            answer(step=i, dump=step.out)
        except Skip as skip:
            answer(step=i, skipped=str(skip))
        except DumpError as error:
            answer(step=i, error=str(error))


def _run_by_hand(framework, arguments):
    given = dict(option.partition("=")[::2] for option in arguments.option)
    step = Step(problem=arguments.problem, layout=Layout.parse(arguments.layout), dtype=getattr(torch, arguments.dtype),
                out=arguments.out, options=_options(framework, given), deadline_s=arguments.deadline)
    framework.check(step)
    if "RANK" in os.environ:
        if int(os.environ["WORLD_SIZE"]) != step.layout.world:
            raise DumpError(f"the layout has {step.layout.world} ranks, torchrun started {os.environ['WORLD_SIZE']}")
        _join_group(step, init_method="env://")
        framework.run(step)
        dist.destroy_process_group()
    else:
        _run_ranks(framework, step)
    if os.environ.get("RANK", "0") == "0":
        print(step.out)


def _join_group(step, **how):
    if step.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if step.device == "cuda" else "gloo",
                            timeout=datetime.timedelta(seconds=step.deadline_s), **how)


def _run_ranks(framework, step):
    """Forks the ranks of one step and returns when all ended well; else ends all and throws DumpError."""
    with tempfile.TemporaryDirectory(prefix="moegate-ranks-") as scratch:
        ranks = [_fork_rank(framework, step, rank, Path(scratch)) for rank in range(step.layout.world)]
        try:
            _watch(ranks, step, Path(scratch))
        finally:
            _end(ranks)


def _fork_rank(framework, step, rank, scratch) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)
        output = os.open(scratch / f"output-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(step.layout.world),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT="0", GLOO_SOCKET_IFNAME="lo")
        torch.set_num_threads(1)
        _join_group(step, store=dist.FileStore(str(scratch / "store"), step.layout.world), rank=rank,
                    world_size=step.layout.world)
        framework.run(step)
        dist.destroy_process_group()
        status = 0
    except DumpError as error:
        (scratch / f"error-{rank}").write_text(str(error))
    except BaseException:  # noqa: BLE001  the rank ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(ranks, step, scratch):
    running, failed = dict(enumerate(ranks)), {}
    deadline = time.monotonic() + step.deadline_s
    settle = None
    while running and (settle is None or time.monotonic() < settle):
        for rank, pid in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[rank]
                ranks[rank] = None
                if status != 0:
                    failed[rank] = status
                    settle = settle or time.monotonic() + _SETTLE_S
        if running and not failed and time.monotonic() > deadline:
            raise DumpError(f"ranks {', '.join(map(str, running))} of {len(ranks)} did not end within "
                            f"{step.deadline_s:g} s{_last_words(scratch, min(running))}")
        time.sleep(0.005)
    if failed:
        raise DumpError(_culprit(failed, len(ranks), scratch))


def _culprit(failed, world, scratch):
    for rank in failed:  # one sentence of ours, and all ranks have the same
        said = scratch / f"error-{rank}"
        if said.exists():
            return said.read_text()
    # A rank whose peer went away says so, and is not the one to blame.
    rank = min(failed, key=lambda rank: (bool(_PEER_WENT.search(_last_words(scratch, rank))), rank))
    code = os.waitstatus_to_exitcode(failed[rank])
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    return f"rank {rank} of {world} {how}{_last_words(scratch, rank)}"


def _last_words(scratch, rank):
    try:
        text = (scratch / f"output-{rank}").read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip()
    except FileNotFoundError:
        text = ""
    return f"; its last words: {text}" if text else ""


def _end(ranks):
    """Ends what still runs of the ranks' process groups."""
    alive = [pid for pid in ranks if pid is not None]
    for pid in alive:
        _signal(pid, signal.SIGTERM)
    patience = time.monotonic() + _GRACE_S
    while alive and time.monotonic() < patience:
        alive = [pid for pid in alive if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.005)
    for pid in alive:
        _signal(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _signal(pid, number):
    for kill in (os.killpg, os.kill):  # the group is there only once the rank has made it
        with contextlib.suppress(ProcessLookupError):
            kill(pid, number)
