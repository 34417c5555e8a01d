#!/usr/bin/env python3
"""Tests of environment.sh, on a copy of it whose releases pin nothing, so that nothing is fetched."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).parent / "environment.sh"

# A python3 that makes environments in no time; its pip fails where a package is called missing.
QUICK_PYTHON = """#!/bin/bash
case $* in
  --version) echo Python 3.11.2 ;;
  "-m venv "*) mkdir -p "$3/bin" "$3/lib/python3.11/site-packages" && cp "$0" "$3/bin/python" ;;
  *" install "*) sleep 0.1; ! grep -q missing "${!#}" ;;
esac
"""


class EnvironmentTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.clone = pathlib.Path(folder.name).resolve()
        self.releases = self.clone / "tools/adapters/releases"
        self.releases.mkdir(parents=True)
        shutil.copy(SCRIPT, self.releases.parent)
        self.pin("torch-1.0", "# nothing\n")
        self.pin("tiny-0.1", "# on torch-1.0\n")
        self.path = os.environ["PATH"]
        quick = self.clone / "bin/python3"
        quick.parent.mkdir()
        quick.write_text(QUICK_PYTHON)
        quick.chmod(0o755)
        self.quick_path = f"{quick.parent}:{self.path}"

    def pin(self, name, text):
        (self.releases / f"{name}.txt").write_text(text)

    def start(self, *arguments, **environment):
        return subprocess.Popen([self.releases.parent / "environment.sh", *arguments], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env={**os.environ, "PATH": self.quick_path, **environment})

    def run_script(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    def make(self, **environment):
        """Makes or finds tiny 0.1; returns its folder and whether anything was made."""
        status, out, err = self.run_script("tiny==0.1", **environment)
        self.assertEqual(status, 0, err)
        python = pathlib.Path(out.splitlines()[-1])
        self.assertTrue(os.access(python, os.X_OK), out)
        return python.parent.parent, "making" in err

    def assertRefused(self, outcome, sentence):
        status, out, err = outcome
        self.assertEqual(status, 2, err)
        self.assertEqual(out, "")
        self.assertIn(sentence, err.splitlines()[-1])

    def test_makes_a_real_environment_on_its_torch(self):
        # Neither python's own folder may come from the caller, nor packages that would count as installed.
        real = {"PATH": self.path, "PYTHONPATH": str(self.clone), "PYTHONHOME": str(self.clone)}
        folder, made = self.make(**real)
        self.assertTrue(made)
        self.assertEqual(folder, self.clone / ".envs/tiny-0.1")
        path = subprocess.check_output([folder / "bin/python", "-c", "import sys; print(sys.path)"], text=True)
        self.assertIn(str(self.clone / ".envs/torch-1.0/lib"), path)
        self.assertEqual(self.make(**real), (folder, False))
        self.pin("tiny-0.1", "# on torch-1.0\nmoegate-no-such-package==1.0\n")
        nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.releases)}  # as without a network
        self.assertRefused(self.run_script("tiny==0.1", **real, **nowhere), "could not install what")

    def test_makes_afresh_what_is_half_made_or_has_other_pins(self):
        folder, _ = self.make()
        (folder / "moegate.stamp").unlink()
        self.assertEqual(self.make(), (folder, True))
        self.pin("tiny-0.1", "# on torch-1.0\n# another pin\n")
        self.assertEqual(self.make(), (folder, True))
        self.assertEqual(self.make(), (folder, False))

    def test_finds_an_environment_that_another_clone_shares(self):
        folder, _ = self.make()
        other = self.clone / "other"
        shutil.copytree(self.clone / "tools", other / "tools")
        (other / ".envs").symlink_to(self.clone / ".envs")
        found = subprocess.run([other / "tools/adapters/environment.sh", "tiny==0.1"], capture_output=True, text=True,
                               env={**os.environ, "PATH": self.quick_path}, check=True)
        self.assertEqual((found.stdout, found.stderr), (f"{folder}/bin/python\n", ""))

    def test_makes_it_once_when_two_ask_at_once(self):
        processes = [self.start("tiny==0.1") for _ in range(2)]
        said = [process.communicate(timeout=100) for process in processes]
        self.assertEqual([process.returncode for process in processes], [0, 0], said)
        self.assertEqual(said[0][0], said[1][0])
        self.assertEqual(sum("making .envs/tiny-0.1" in err for _, err in said), 1, said)

    def test_leaves_nothing_whole_when_a_package_cannot_be_had(self):
        self.pin("tiny-0.1", "# on torch-1.0\nmissing==1.0\n")
        for _ in range(2):
            self.assertRefused(self.run_script("tiny==0.1"), "could not install what")

    def test_refuses_what_it_does_not_know(self):
        self.assertRefused(self.run_script("tiny==0.2"), "none of the releases that are pinned: tiny==0.1")
        self.assertRefused(self.run_script("torch==1.0"), "none of the releases that are pinned: tiny==0.1")
        for wrong in (["tiny"], ["../tiny==0.1"], ["tiny==0.1", "tiny==0.1"], ["tiny==0.1;id"]):
            self.assertRefused(self.run_script(*wrong), "takes one NAME==VERSION")


if __name__ == "__main__":
    unittest.main()
