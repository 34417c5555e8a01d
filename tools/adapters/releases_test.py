#!/usr/bin/env python3
"""What the real releases must show: torchtitan 0.2.2 has the bug of #2387 where it must and nowhere else; Megatron-core
0.18.2 sums expert gradients over the wrong ranks exactly where ep is 1 and etp is not tp, and 0.19.2 does not.

    tools/adapters/releases_test.py [path of moegate]

The environments are made where they are missing (PyTorch is 2.7 GB to fetch).
"""

import json
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOEGATE = ROOT / "build" / "moegate"


def run(producer, *select):
    """The results of a sweep; fails where the command did not get to its end."""
    done = subprocess.run([MOEGATE, "run", *select, f"--producer={producer}", "--json"], cwd=ROOT, text=True,
                          check=False, capture_output=True, timeout=2400)
    if not done.stdout.startswith("{"):
        raise AssertionError(f"moegate ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def layout_of(result):
    sizes = {"dpr": 1, "dp": 1, "cp": 1, "tp": 1, "ep": 1, "lb": 1, "sp": 1}
    for part in result["id"].split("@")[1].split("."):
        name = part.rstrip("0123456789")
        sizes[name] = int(part[len(name):])
    sizes.setdefault("etp", sizes["tp"] if sizes["ep"] == 1 else 1)
    return sizes


def failing(result):
    """{tensor: (cause, axes, used)} of what failed."""
    return {finding["tensor"]: (finding["cause"], tuple(finding["axes"]), tuple(finding.get("used", ())))
            for finding in result["findings"] if finding["verdict"] == "fail"}


class ReleasesTest(unittest.TestCase):
    def test_torchtitan_022_misses_the_gates_sum_over_tp(self):
        answer = run("torchtitan==0.2.2", "issues/*")
        judged = [result for result in answer["results"] if result["verdict"] != "skipped"]
        self.assertGreaterEqual(len(judged), 35)
        self.assertEqual(answer["summary"]["error"], 0)
        told = 0
        for result in judged:
            layout, before = layout_of(result), "score-before" in result["id"] or self.scores_before(result)
            # With etp 1 each tp rank routes its own tokens; else the score's gradient is a share of the hidden units,
            # unless the scores are applied before the experts, whose input's gradient is summed (#1878).
            wrong = layout["tp"] > 1 and ((layout["ep"] > 1 and layout["etp"] == 1) or not before)
            with self.subTest(result["id"]):
                self.assertEqual(result["verdict"], "fail" if wrong else "pass")
                if not wrong:
                    continue
                told += 1
                found = failing(result)
                self.assertEqual(found["d_gate_ED"], ("missing_sum", ("tp",), ()))
                # What the experts and the shared experts get is right in every layout.
                self.assertLessEqual(set(found), {"d_gate_ED", "d_x_TD"})
                # With etp 1 and one sequence a rank the boundary keeps just the rows that the rank computed.
                own_rows = layout["ep"] > 1 and layout["etp"] == 1 and layout["lb"] == 1
                self.assertEqual("d_x_TD" in found, not own_rows)
        self.assertGreaterEqual(told, 20)

    def scores_before(self, result):
        case = json.loads((ROOT / "cases" / (result["id"].split("@")[0] + ".json")).read_text())
        return case["model"].get("score_placement") == "before_experts"

    def test_megatron_0182_sums_expert_gradients_over_the_wrong_ranks(self):
        answer = run("megatron-core==0.18.2", "frameworks/megatron", "issues/megatron-expert-gradient")
        self.assertEqual(answer["summary"]["skipped"] + answer["summary"]["error"], 0)
        for result in answer["results"]:
            layout = layout_of(result)
            wrong = layout["ep"] == 1 and layout["etp"] != layout["tp"]
            with self.subTest(result["id"]):
                self.assertEqual(result["verdict"], "fail" if wrong else "pass")
                if not wrong:
                    continue
                found = failing(result)
                self.assertEqual(set(found), {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"})
                data_parallel = layout["dpr"] * layout["dp"] * layout["cp"] > 1
                for cause, axes, used in found.values():
                    if data_parallel:  # summed over these instead of edp
                        self.assertEqual((cause, axes), ("wrong_group", ("edp",)))
                        self.assertLessEqual(set(used), {"dp_shard", "cp"})
                    else:  # summed over nobody
                        self.assertEqual((cause, axes), ("missing_sum", ("edp",)))

    def test_megatron_0192_is_green(self):
        answer = run("megatron-core==0.19.2", "frameworks/megatron", "issues/megatron-expert-gradient")
        self.assertEqual(answer["summary"]["passed"], answer["summary"]["listed"])


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        MOEGATE = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main(verbosity=2)
