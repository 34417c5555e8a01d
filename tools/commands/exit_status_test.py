#!/usr/bin/env python3
"""Runs every command of moegate and asserts the exit status that README.md promises: 0 every listed case passed,
1 one failed, proved nothing or did not run, 2 the command, a file or the machine is at fault.

usage: tools/commands/exit_status_test.py MOEGATE
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOEGATE = ""
CASE = "smoke/smoke"
STEP = "smoke/smoke@tp2"
COMMANDS = ("list", "explain", "check", "inputs", "run", "mutate", "soak", "regen")


class ExitStatusTest(unittest.TestCase):
    folder: pathlib.Path
    clean: pathlib.Path
    faulty: pathlib.Path
    golden: pathlib.Path
    strict: pathlib.Path

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        for name, fault in (("clean", []), ("faulty", ["--fault=drop d_gate_ED@tp"])):
            subprocess.run([MOEGATE, "run", STEP, "--dtype=float32", *fault, "--dump", cls.folder / name], cwd=ROOT,
                           check=False, stdout=subprocess.DEVNULL, timeout=100)
        cls.clean = cls.dump_below("clean")
        cls.faulty = cls.dump_below("faulty")
        cls.golden = cls.folder / "golden"
        cls.write_golden(cls.golden, 1.0)
        # Allows less than rounding does, so that steps without a fault fail.
        cls.strict = cls.folder / "strict"
        cls.write_golden(cls.strict, 1e-3)

    @classmethod
    def dump_below(cls, name):
        """The dump of the step without a fault of must_catch, which `run` keeps beside the others."""
        return min(path.parent for path in (cls.folder / name).rglob("manifest.json"))

    @classmethod
    def write_golden(cls, folder, factor):
        golden = json.loads((ROOT / "golden" / f"{CASE}.json").read_text())
        for tensors in golden["tolerances"].values():
            for entry in tensors.values():
                for key in ("tolerance", "bound", "worst_case", "noise_floor", "detectable_scale"):
                    entry[key] *= factor
                if entry["fault_to_tolerance"]:
                    entry["fault_to_tolerance"] /= factor
        path = folder / f"{CASE}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(golden))

    def assert_status(self, status, *arguments, stdout=subprocess.PIPE):
        done = subprocess.run([MOEGATE, *map(str, arguments)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout,
                              check=False, stderr=subprocess.PIPE, text=True, timeout=100)
        told = f"moegate {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        self.assertEqual(done.returncode, status, told)
        return done.stdout, done.stderr

    def assert_done(self, *arguments):
        out, err = self.assert_status(0, *arguments)
        self.assertTrue(out)
        self.assertEqual(err, "")
        return out

    def assert_verdict(self, *arguments):
        """Exit status 1: what was asked for was done, and is no pass."""
        out, err = self.assert_status(1, *arguments)
        self.assertEqual(err, "")
        return out

    def assert_refused(self, complaint, *arguments):
        """Exit status 2, and standard error says why."""
        _, err = self.assert_status(2, *arguments)
        self.assertIn(complaint, err)

    def test_help_of_all_commands(self):
        for command in ([], *([name] for name in COMMANDS)):
            with self.subTest(command=command):
                self.assertIn("Usage: ", self.assert_done(*command, "--help"))

    def test_no_command(self):
        self.assert_refused("A subcommand is required")

    def test_unknown_command(self):
        self.assert_refused("A subcommand is required", "nonsense")

    def test_unknown_option(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                needed: dict[str, list] = {
                    "explain": [STEP], "check": [self.clean], "inputs": [CASE, "--out", self.folder / "no"]}
                self.assert_refused("--nonsense", command, *needed.get(command, []), "--nonsense")

    def test_unknown_case(self):
        for command in (["list"], ["explain"], ["run"], ["inputs", "--out", self.folder / "no"], ["mutate"], ["soak"],
                        ["regen"]):
            with self.subTest(command=command):
                self.assert_refused("ERROR  ", *command, "nowhere/nothing")

    def test_list(self):
        self.assert_done("list")
        self.assert_done("list", "--json", CASE)
        self.assert_refused("selects no case", "list", "nowhere*")
        self.assert_refused("/nonexistent", "--cases", "/nonexistent", "list")

    def test_report_that_cannot_be_written(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            self.assertIn("No space left on device", self.assert_status(2, "list", stdout=full)[1])

    def test_explain(self):
        self.assert_done("explain", STEP)
        self.assert_refused("required", "explain")

    def test_inputs(self):
        self.assert_done("inputs", CASE, "--out", self.folder / "inputs")
        self.assert_refused("is no dtype of inputs", "inputs", CASE, "--out", self.folder / "no", "--dtype=float16")
        self.assert_refused("/proc/nothing", "inputs", CASE, "--out", "/proc/nothing")
        self.assert_refused("required", "inputs", CASE)

    def test_run(self):
        self.assert_done("run", STEP, "--dtype=float64")
        self.assertIn("gate FAILED", self.assert_verdict("run", STEP, "--dtype=float32", "--fault=drop d_gate_ED@tp"))
        self.assertIn("gate FAILED", self.assert_verdict("run", STEP, "--dtype=float64", "--golden", self.strict))
        self.assert_refused("is no dtype of the step", "run", STEP, "--dtype=int8")
        self.assert_refused("--fault", "run", STEP, "--fault=drop nothing")
        self.assert_refused("--layout", "run", STEP, "--layout=tp7")
        self.assert_refused("--backend", "run", STEP, "--backend=mpi")

    def test_run_without_golden_file(self):
        out, _ = self.assert_status(2, "run", STEP, "--golden", self.folder / "nowhere")
        self.assertIn("regen_golden.sh", out)

    def test_check(self):
        self.assert_done("check", self.clean)
        self.assertIn("gate FAILED", self.assert_verdict("check", self.faulty))
        self.assertIn("gate FAILED", self.assert_verdict("check", self.clean, self.faulty))
        out, _ = self.assert_status(2, "check", self.clean, self.faulty, self.folder / "nowhere")
        self.assertIn("1 failed", out)
        self.assertIn("1 error", out)
        self.assert_refused("required", "check")
        self.assert_refused("/nonexistent", "check", self.clean, "--junit=/nonexistent/report.xml")

    def test_mutate(self):
        few = ("mutate", STEP, "--dtype=float64", "--jobs=1", "--most=20")
        self.assert_done(*few)
        self.assertIn("FAILS WITHOUT A FAULT", self.assert_verdict(*few, "--golden", self.strict))
        self.assert_refused("plants nothing", *few, "--classes=FC99")
        self.assert_refused("--most", "mutate", STEP, "--most=0")

    def test_soak(self):
        # No alarm without a fault is what it shows, and it can plant none: status 1 would be a bug of moegate.
        self.assert_done("soak", STEP, "--seeds=2", "--jobs=1")
        self.assert_refused("is no dtype of the step", "soak", STEP, "--dtype=int8")
        self.assert_refused("--seeds", "soak", STEP, "--seeds=0")

    def test_regen(self):
        self.assert_done("regen", CASE, "--golden", self.golden)
        self.assert_done("regen", CASE, "--golden", self.strict, "--calibrate")
        self.assertIn("not written", self.assert_verdict("regen", CASE, "--golden", self.strict))
        self.assert_refused("selects no case", "regen", "nowhere*")
        (self.folder / "broken" / CASE).parent.mkdir(parents=True)
        (self.folder / "broken" / f"{CASE}.json").write_text("{")
        self.assert_refused(f"{CASE}.json", "regen", CASE, "--golden", self.folder / "broken")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MOEGATE = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
