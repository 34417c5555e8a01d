#!/usr/bin/env python3
"""Runs one MoE layer of the installed torchtitan under a layout and dumps its gradients for moegate.

Started by `moegate run CASE --producer torchtitan==0.2.2`, by torchrun, or by hand:

    build/moegate inputs issues/torchtitan-2387 --out problem
    $(tools/adapters/environment.sh torchtitan==0.2.2) tools/adapters/torchtitan_step.py --release 0.2.2 \\
        --problem problem --layout tp2.ep2.etp1 --out dump
    build/moegate check dump
"""

import argparse

from moegate_dump.ranks import serve


def framework():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--release", default="")
    release = parser.parse_known_args()[0].release
    if release.startswith("0.2."):
        from torchtitan_02 import Torchtitan02

        return Torchtitan02()
    from torchtitan_03 import Torchtitan03

    return Torchtitan03()


if __name__ == "__main__":
    serve(framework())
