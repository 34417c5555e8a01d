#!/usr/bin/env python3
"""Test of `moegate regen` as a whole: the smallest case's golden file, made anew, is the one that is committed.

usage: tools/commands/regen_test.py MOEGATE
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

MOEGATE = ""
CASE = "smoke/smoke"
COMMITTED = pathlib.Path(__file__).resolve().parents[2] / "golden" / f"{CASE}.json"
MEASURED = ("noise_floor", "noise_to_bound")


class RegenTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.golden = pathlib.Path(folder.name)
        self.file = self.golden / f"{CASE}.json"
        self.file.parent.mkdir(parents=True)

    def regen(self, *arguments):
        return subprocess.run([MOEGATE, "regen", CASE, "--golden", self.golden, *arguments], capture_output=True,
                              text=True, timeout=200, check=False)

    def write(self, golden):
        self.file.write_text(json.dumps(golden, indent=2) + "\n")

    def entries(self, golden):
        for dtype, tensors in golden["tolerances"].items():
            for tensor, entry in tensors.items():
                yield f"{dtype} {tensor}", entry

    def test_makes_the_committed_file_out_of_nothing(self):
        done = self.regen()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        made, committed = json.loads(self.file.read_text()), json.loads(COMMITTED.read_text())
        for (what, now), (_, before) in zip(self.entries(made), self.entries(committed), strict=True):
            # Noise depends on the machine. A step stays while noise is between a quarter and 1.25 of it, and is
            # the least power of sqrt(2) below the bound that is 1.5 times the noise.
            self.assertGreater(now["noise_floor"], 1.49 / 4 * before["noise_floor"], what)
            self.assertLess(now["noise_floor"], 1.25 * 1.5 * 1.42 * before["noise_floor"], what)
            for key in MEASURED:
                del now[key], before[key]
        self.assertEqual(made, committed)

    def test_puts_right_what_is_wrong_and_nothing_else(self):
        golden = json.loads(COMMITTED.read_text())
        golden["case_sha256"] = "0" * 64  # stale
        entry = golden["tolerances"]["float32"]["d_gate_ED"]
        entry["fault_floor"] = entry["fault_to_tolerance"] = None
        self.write(golden)
        done = self.regen()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(f"written to {self.file}", done.stdout)
        self.assertEqual(self.file.read_text(), COMMITTED.read_text())

    def test_leaves_alone_what_is_right(self):
        self.file.write_text(COMMITTED.read_text())
        done = self.regen()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("unchanged", done.stdout)
        self.assertEqual(self.file.read_text(), COMMITTED.read_text())

    def test_widens_a_tolerance_only_when_told_to(self):
        golden = json.loads(COMMITTED.read_text())
        entry = golden["tolerances"]["float32"]["d_w1_EFD"]
        entry["tolerance"] = float(f"{entry['tolerance'] * 0.9:.2e}")
        entry["noise_floor"] = float(f"{entry['noise_floor'] * 0.9:.2e}")
        entry["noise_to_bound"] = float(f"{entry['noise_floor'] / entry['bound']:.1e}")
        self.write(golden)
        narrowed = self.file.read_text()
        refused = self.regen()
        self.assertEqual((refused.returncode, refused.stderr), (1, ""))
        self.assertIn("WIDER", refused.stdout)
        self.assertIn("not written: a tolerance would get wider", refused.stdout)
        self.assertEqual(self.file.read_text(), narrowed)
        self.assertEqual(self.regen("--accept").returncode, 0)
        self.assertEqual(json.loads(self.file.read_text())["tolerances"]["float32"]["d_w1_EFD"]["tolerance"],
                         json.loads(COMMITTED.read_text())["tolerances"]["float32"]["d_w1_EFD"]["tolerance"])

    def test_takes_no_layout(self):
        done = subprocess.run([MOEGATE, "regen", f"{CASE}@tp2", "--golden", self.golden],
                              capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn(f"{CASE}@tp2: names a layout", done.stderr)
        self.assertFalse(self.file.exists())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MOEGATE = os.path.realpath(sys.argv.pop(1))
    unittest.main()
