#!/usr/bin/env python3
"""Tests of `moegate run --producer` as a whole, with a fake producer.

usage: tools/producers/run_producer_test.py MOEGATE
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

MOEGATE = ""
FAKE = str(pathlib.Path(__file__).resolve().parent / "fake_producer.py")
STEP = "issues/torchtitan-2387@tp2.ep2.etp1"
OTHER_STEP = "issues/torchtitan-2387@dp2.tp3.ep2.etp1"


class RunProducerTest(unittest.TestCase):
    dumps: str

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dumps = folder.name
        # Clean dumps, and those of the faults that the case plants.
        subprocess.run([MOEGATE, "run", STEP, OTHER_STEP, "--dtype=float64", "--dump", cls.dumps], check=True,
                       stdout=subprocess.DEVNULL)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.environment = {**os.environ, "FAKE_DUMPS": self.dumps}

    def run_moegate(self, *arguments, **environment):
        return subprocess.run([MOEGATE, "run", *arguments], env=self.environment | environment, cwd=self.folder,
                              check=False, capture_output=True, text=True, timeout=100)

    def results(self, do, *arguments, select=(STEP,)):
        """Exit status and results of a run in which the producer does all of `do`, one after the other."""
        done = self.run_moegate(*select, "--producer", FAKE, "--producer-option", f"do={do}", "--json", *arguments)
        told = json.loads(done.stdout)
        self.assertEqual(told["summary"]["listed"], len(told["results"]))
        return done.returncode, told["results"]

    def result(self, do, *arguments):
        status, (result,) = self.results(do, *arguments)
        return status, result["verdict"], result["text"]

    def assertEndsAs(self, outcome, status, verdict, *parts):
        self.assertEqual(outcome[:2], (status, verdict), outcome[2])
        for part in parts:
            self.assertIn(part, outcome[2])

    def test_judges_each_dump_and_reports_as_usual(self):
        status, results = self.results("right,wrong,skip")
        self.assertEqual(status, 1)
        self.assertEqual([r["verdict"] for r in results], ["pass", "fail", "skipped"])
        self.assertEqual([r["options"] for r in results], ["do=right", "do=wrong", "do=skip"])
        self.assertEqual({(r["id"], r["dtype"], r["backend"], r["fault"]) for r in results},
                         {(STEP, "float64", FAKE, None)})
        self.assertEqual(results[1]["text"], "d_gate_ED: missing sum over tp")
        self.assertEqual(results[2]["text"], "there is no such layout in 1979")

    def test_passes_when_all_passes(self):
        done = self.run_moegate("issues/torchtitan-2387@tp2.*", OTHER_STEP, "--producer", FAKE,
                                "--producer-option", "do=right")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertTrue(done.stdout.endswith(
            "2 listed: 2 passed, 0 failed, 0 vacuous, 0 skipped, 0 error: gate PASSED\n"), done.stdout)

    def test_a_report_that_is_lost_is_no_pass(self):
        for json_or_text in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                done = subprocess.run([MOEGATE, "run", STEP, "--producer", FAKE, "--producer-option", "do=right",
                                       *json_or_text], env=self.environment, stdout=full, stderr=subprocess.PIPE,
                                      check=False, text=True, timeout=100)
            self.assertEqual(done.returncode, 2)
            self.assertIn("standard output: cannot be written", done.stderr)

    def test_gives_a_line_that_does_it_again(self):
        _, (_, result) = self.results("right,wrong", "--producer-option", "fsdp=on")
        words = result["repro"].split()
        self.assertEqual(words[:2], ["build/moegate", "run"])
        again = self.run_moegate(*words[2:], "--json")
        self.assertEqual([r["text"] for r in json.loads(again.stdout)["results"]], [result["text"]])

    def test_runs_every_combination_of_options(self):
        _, results = self.results("right,skip", "--producer-option", "x=1,2", select=(STEP, OTHER_STEP))
        self.assertEqual(sorted((r["options"], r["id"]) for r in results),
                         sorted((f"do={do} x={x}", step) for do in ("right", "skip") for x in "12"
                                for step in (STEP, OTHER_STEP)))

    def test_tells_results_apart_in_junit(self):
        self.results("right,wrong", "--junit", "junit.xml")
        cases = xml.etree.ElementTree.parse(self.folder / "junit.xml").iter("testcase")
        self.assertEqual(len({(case.get("classname"), case.get("name")) for case in cases}), 2)

    def test_keeps_dumps_where_they_are_wanted_and_overwrites_none(self):
        self.results("right", "--dump", "kept")
        self.assertTrue((self.folder / f"kept/{STEP}.float64.do=right/manifest.json").exists())
        again = self.run_moegate(STEP, "--producer", FAKE, "--producer-option", "do=right", "--dump", "kept")
        self.assertEqual(again.returncode, 2)
        self.assertIn("is there already", again.stderr)

    def test_refuses_a_dump_of_something_else(self):
        self.assertEndsAs(self.result("other-case"), 2, "error", "dumped the case smoke/smoke instead of the case")
        self.assertEndsAs(self.result("right", "--producer-option", f"source={OTHER_STEP}"), 2, "error",
                          "dumped the layout dp2.tp3.ep2.etp1 instead of tp2.ep2.etp1")
        self.assertEndsAs(self.result("other-model"), 2, "error", "another model than that of issues/torchtitan-2387")
        self.assertEndsAs(self.result("right", "--dtype=float32"), 2, "error", "dumped float64 instead of float32")

    def test_judges_no_dump_that_is_not_whole(self):
        self.assertEndsAs(self.result("half"), 2, "error", "rank-00001.safetensors")
        self.assertEndsAs(self.result("temporary"), 2, "error", "manifest.json")

    def test_hands_on_an_error_and_goes_on(self):
        status, results = self.results("error,right")
        self.assertEqual((status, [r["verdict"] for r in results]), (2, ["error", "pass"]))
        self.assertTrue(results[0]["text"].startswith("rank 1 of 4 ended"))

    def test_says_of_every_step_why_it_has_no_answer(self):
        for do, *parts in (("crash", "ended with exit status 1; its last words: the framework gave up"),
                           ("segfault", "crashed with signal 11"),
                           ("nonsense", "printed what is no answer", "step 0 went well")):
            status, results = self.results(f"right,{do},right")
            self.assertEqual((status, [r["verdict"] for r in results]), (2, ["pass", "error", "error"]))
            for result in results[1:]:
                self.assertEndsAs((status, result["verdict"], result["text"]), 2, "error", *parts)

    def test_ends_a_producer_that_is_silent(self):
        self.assertEndsAs(self.result("silent", "--deadline=0.1"), 2, "error", "made no progress within 5.2 s")

    def start_with_pipe(self, *arguments):
        """Starts moegate with a pipe whose end comes when none of those it started lives."""
        read_end, write_end = os.pipe()
        process = subprocess.Popen([MOEGATE, "run", *arguments], pass_fds=[write_end], cwd=self.folder,
                                   env=self.environment | {"FAKE_PIPE": str(write_end)},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: process.stderr and process.stderr.close())
        os.close(write_end)
        pipe = os.fdopen(read_end)
        self.addCleanup(pipe.close)
        return process, pipe

    def test_leaves_nothing_behind(self):
        for do in ("right", "crash", "nonsense"):
            process, pipe = self.start_with_pipe(STEP, "--producer", FAKE, "--producer-option", f"do={do}")
            release, steps = pipe.readline().split()
            self.assertEqual(release, "None")
            process.wait(timeout=100)
            self.assertEqual(pipe.read(), "")
            self.assertFalse(os.path.exists(os.path.dirname(steps)))

    def test_leaves_nothing_behind_when_a_signal_ends_it(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process, pipe = self.start_with_pipe(STEP, "--producer", FAKE, "--producer-option", "do=silent")
            steps = pipe.readline().split()[1]
            self.assertNotIn("libtorch", pathlib.Path(f"/proc/{process.pid}/maps").read_text())
            process.send_signal(number)
            self.assertEqual(process.wait(timeout=100), -number)
            self.assertEqual(pipe.read(), "")
            self.assertFalse(os.path.exists(os.path.dirname(steps)))

    def make_adapters(self, environment):
        """A clone's tools/adapters/ in the working directory, which comes before moegate's own."""
        adapters = self.folder / "tools/adapters"
        adapters.mkdir(parents=True)
        shutil.copy(FAKE, adapters / "torchtitan_step.py")
        (adapters / "environment.sh").write_text(environment)

    def test_starts_the_adapter_of_a_release_in_its_environment(self):
        self.make_adapters(f'echo "making $1" >&2; echo something else; echo {sys.executable}\n')
        process, pipe = self.start_with_pipe(STEP, "--producer", "torchtitan==0.2.2", "--producer-option", "do=right")
        self.assertEqual(pipe.readline().split()[0], "0.2.2")
        self.assertEqual((process.wait(timeout=100), process.stderr.read()), (0, "making torchtitan==0.2.2\n"))

    def test_stops_where_there_is_no_environment(self):
        self.make_adapters("echo 'environment.sh: no network' >&2; exit 2\n")
        done = self.run_moegate(STEP, "--producer", "torchtitan==0.2.2")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertEqual(done.stderr.splitlines()[0], "environment.sh: no network")
        self.assertIn("has no environment of torchtitan==0.2.2", done.stderr.splitlines()[1])

    def test_a_signal_ends_the_making_of_an_environment(self):
        self.make_adapters("echo making >&$FAKE_PIPE; sleep 1000\n")
        process, pipe = self.start_with_pipe(STEP, "--producer", "torchtitan==0.2.2")
        self.assertEqual(pipe.readline(), "making\n")
        process.terminate()
        self.assertEqual(process.wait(timeout=100), -signal.SIGTERM)
        self.assertEqual(pipe.read(), "")

    def test_refuses_what_does_not_go_together(self):
        job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        producer = ("--producer", FAKE)
        for arguments, environment, sentence in (
                ((*producer, "--fault", "drop d_gate_ED@tp"), {}, "--fault excludes --producer"),
                ((*producer, "--seed=3"), {}, "--seed excludes --producer"),
                ((*producer, "--backend=threads"), {}, "--backend excludes --producer"),
                (("--producer-option", "a=b"), {}, "--producer-option requires --producer"),
                ((*producer, "--producer-option", "fsdp"), {}, 'must be KEY=VALUE or KEY=VALUE,VALUE'),
                ((*producer, "--producer-option", "a=1", "--producer-option", "a=2"), {}, "a is given twice"),
                (producer, job, "run it without torchrun, srun or mpirun"),
                (("--producer", "./no_such_program"), {}, "is not a program that can be started"),
                (("--producer", "apex==1.0"), {}, "there is no adapter for apex"),
        ):
            done = self.run_moegate(STEP, *arguments, **environment)
            self.assertEqual((done.returncode, done.stdout), (2, ""), sentence)
            self.assertIn(sentence, done.stderr.splitlines()[0])

    def test_takes_a_case_after_an_option(self):
        done = self.run_moegate("--producer", FAKE, "--producer-option", "do=right", STEP)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MOEGATE = os.path.realpath(sys.argv.pop(1))
    unittest.main()
