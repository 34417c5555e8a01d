#!/usr/bin/env python3
"""Checks the borders between modules: which folder may include what.

usage: tools/check_includes.py [root of the clone]
Prints file:line: sentence for every violation; exit status 1 if there is one.
The build holds the same borders by what a target links; this also sees headers that any target could reach.
"""
import os
import pathlib
import re
import sys

TORCH = {"ATen", "torch", "c10"}
CUDA = {"nccl.h", "cuda.h", "cuda_runtime.h", "cuda_runtime_api.h"}
ANY = {"*"}
# Folder: what its files may include, beside themselves, the standard library and, but for reference/, POSIX.
# A name is a folder of ours, a file of ours, or the first part of a third-party header.
ALLOWED = {
    "reference": {"harness/base", "Eigen", "fmt"},
    "harness/base": {"fmt"},
    "harness/json": {"harness/base", "nlohmann", "fmt"},
    "harness/layout": {"harness/base", "fmt"},
    "harness/spec": {"harness/base", "harness/json", "harness/layout", "nlohmann", "fmt"},
    "harness/inputs": {"harness/base", "harness/layout", "harness/spec", "reference", "Eigen", "fmt"},
    "harness/dump": {"harness/base", "harness/json", "harness/layout", "nlohmann", "fmt"},
    "harness/measure": {"harness/base", "harness/json", "harness/layout", "harness/spec", "harness/dump", "reference",
                        "Eigen", "nlohmann", "openssl", "fmt"},
    "harness/explain": {"harness/base", "harness/layout", "harness/dump", "harness/measure", "reference", "Eigen",
                        "fmt"},
    "harness/report": {"harness/base", "harness/json", "harness/layout", "harness/dump", "harness/measure",
                       "harness/explain",
                       "tinyxml2.h", "nlohmann", "fmt"},
    "harness/parallel": {"harness/base", "harness/layout", "harness/inputs", "harness/dump", "fmt"} | TORCH | CUDA,
    "harness/launch": {"harness/base", "fmt"},
    "harness/campaign": {"harness", "harness/base", "harness/json", "harness/layout", "harness/spec", "harness/measure",
                         "harness/explain", "harness/launch", "fmt"},
    "harness": ANY,  # the files directly in it, which put the modules together
    "cases": ANY,
    "tools/producers": {"harness/base", "harness/json", "harness/launch", "fmt"},
    "tools": ANY,
}
TEST_ONLY = {"gtest", "gmock"}
POSIX = {"sys", "netinet", "arpa", "net", "linux"}
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')


def module_of(path):
    """The longest known folder that holds the path, None if there is none."""
    folder = os.path.dirname(path)
    if folder == "harness" or folder in ALLOWED:
        return folder
    top = "/".join(path.split("/")[:2] if path.startswith("harness/") else path.split("/")[:1])
    return top if top in ALLOWED else None


def problem(path, module, quote, header):
    """Says what is wrong with one include; None if nothing is."""
    first = header.split("/")[0]
    is_test = path.endswith("_test.cc")
    if quote == '"':
        target = module_of(header)
        if target is None:
            return f'"{header}" is not a path from the root of the clone, such as "harness/base/error.h"'
        name = target
    elif "/" not in header and "." not in header:
        return None  # the standard library
    elif first in POSIX or ("/" not in header and header not in CUDA | {"tinyxml2.h"}):
        return "reference/ may not use POSIX headers" if module == "reference" else None
    else:
        name = header if "/" not in header else first
    allowed = ALLOWED[module]
    if name == module or allowed == ANY or name in allowed or (is_test and name in TEST_ONLY):
        return None
    if name in TEST_ONLY:
        return f"{header}: only *_test.cc may include GoogleTest"
    return f"{module}/ may not include {header}; it may include {', '.join(sorted(allowed))}"


def sources(root):
    for folder, subfolders, names in os.walk(root):
        at_root = pathlib.Path(folder) == root
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")
                               and not (at_root and (s.startswith("build") or s == "out")))
        for name in sorted(names):
            if name.endswith((".h", ".cc", ".cpp", ".cu", ".hpp")):
                yield (pathlib.Path(folder) / name).relative_to(root).as_posix()


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    files = violations = 0
    for path in sources(root):
        files += 1
        module = module_of(path)
        if module is None:
            print(f"{path}:1: no module owns this folder; known are {', '.join(sorted(ALLOWED))}")
            violations += 1
            continue
        for number, line in enumerate((root / path).read_text(errors="replace").splitlines(), 1):
            found = INCLUDE.match(line)
            sentence = problem(path, module, found[1], found[2]) if found else None
            if sentence:
                print(f"{path}:{number}: {sentence}")
                violations += 1
    print(f"{files} files, {violations} violations")
    return 1 if violations or not files else 0


if __name__ == "__main__":
    sys.exit(main())
