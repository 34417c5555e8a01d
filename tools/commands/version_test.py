#!/usr/bin/env python3
"""Tests of `moegate --version`, and of how the commit gets into it.

usage: tools/commands/version_test.py MOEGATE
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

MOEGATE = ""
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class VersionTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_moegate(self, *arguments, **environment):
        return subprocess.run([MOEGATE, *arguments], check=False, capture_output=True, text=True, timeout=60,
                              env={**os.environ, **environment})

    def test_names_what_it_is_and_of_what(self):
        done = self.run_moegate("--version")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        self.assertEqual(list(said), ["moegate", "commit", "LibTorch", "Eigen", "compiler"])
        [version] = re.findall(r"project\(moegate VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
        self.assertEqual(said["moegate"], version)
        self.assertRegex(said["commit"], r"^([0-9a-f]{12}(\+changes)?|unknown)$")
        judge_only = "MOEGATE_STEP=OFF" in self.run_moegate("run", "no/such-case").stderr
        self.assertRegex(said["LibTorch"], "^none$" if judge_only else r"^2\.\d+\.\d+$")
        self.assertRegex(said["Eigen"], r"^3\.\d+\.\d+$")
        self.assertRegex(said["compiler"], r"^\w+ \d+\.\d+")

        results = json.loads(self.run_moegate("check", str(self.folder), "--json").stdout)
        self.assertEqual(results["moegate"], {"version": said["moegate"], "commit": said["commit"]})

    def test_loads_no_libtorch(self):
        done = self.run_moegate("--version", LD_DEBUG="libs")  # the loader tells what it looks for
        self.assertIn("libfmt", done.stderr)
        self.assertNotIn("torch", done.stderr)


class CommitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.clone = pathlib.Path(folder.name) / "clone"
        self.clone.mkdir()
        self.header = pathlib.Path(folder.name) / "commit.h"

    def git(self, *arguments):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, text=True,
                              cwd=self.clone, capture_output=True).stdout.strip()

    def commit_of(self, folder):
        subprocess.run(["cmake", f"-DSOURCE={folder}", f"-DHEADER={self.header}", "-P",
                        ROOT / "tools/cmake/WriteCommit.cmake"], check=True)
        [commit] = re.findall(r'kCommit = "(.*)";', self.header.read_text())
        return commit

    def test_is_unknown_outside_a_clone(self):
        self.assertEqual(self.commit_of(self.clone), "unknown")

    def test_is_that_of_the_clone_with_its_changes(self):
        self.git("init", "--quiet")
        self.assertEqual(self.commit_of(self.clone), "unknown")  # nothing is committed yet
        (self.clone / "file").write_text("1")
        self.git("add", "file")
        self.git("commit", "--quiet", "-m", "one")
        commit = self.git("rev-parse", "--short=12", "HEAD")
        self.git("tag", "-a", "v1", "-m", "a tag does not stand in its place")
        self.assertEqual(self.commit_of(self.clone), commit)
        (self.clone / "file").write_text("2")
        self.assertEqual(self.commit_of(self.clone), commit + "+changes")

        # Sources that were unpacked inside another repository are not of its commits.
        (self.clone / "unpacked").mkdir()
        self.assertEqual(self.commit_of(self.clone / "unpacked"), "unknown")

    def test_a_header_that_is_right_stays_as_it_is(self):
        self.commit_of(self.clone)
        os.utime(self.header, (1, 1))
        self.commit_of(self.clone)
        self.assertEqual(self.header.stat().st_mtime, 1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MOEGATE = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
