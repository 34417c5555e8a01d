#!/usr/bin/env python3
"""Tests of moegate_dump, megatron_convert.py and of what Megatron is not asked to run; needs a python with torch, and
moegate for the verdicts.

    .envs/torch-2.11.0/bin/python tools/adapters/adapters_test.py [MOEGATE] [unittest's arguments]
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import replace
from unittest import mock

import megatron_convert
import megatron_layer
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from moegate_dump import (
    HUGGING_FACE,
    HUGGING_FACE_TRANSPOSED,
    MEGATRON,
    MEGATRON_SHARDS,
    TORCHTITAN,
    DumpError,
    Holds,
    Layout,
    Skip,
    capture,
    load_inputs,
)
from moegate_dump.names import find
from moegate_dump.placement import shard_of
from moegate_dump.problem import mesh_of
from moegate_dump.ranks import Step, serve
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Shard

HERE = pathlib.Path(__file__).resolve().parent
CLONE = HERE.parent.parent
MOEGATE = os.environ.get("MOEGATE", str(CLONE / "build/moegate"))
CASE = "layouts/folding"  # softmax, normalised scores, a shared expert


class Parameters(torch.nn.Module):
    """A module of the given parameters; dots in the names make submodules."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(torch.full(shape, 7.0, dtype=torch.float64)))


class Layer(Parameters):
    """The case's MoE layer, with TorchTitan's names."""

    def __init__(self, problem):
        model = problem.model
        E, D, F, S = (model[key] for key in ("experts", "d_model", "d_expert", "d_shared"))
        super().__init__(**{"router.gate.weight": [E, D], "experts.w1": [E, F, D], "experts.w2": [E, D, F],
                            "experts.w3": [E, F, D], "shared_experts.w1.weight": [S, D],
                            "shared_experts.w2.weight": [D, S], "shared_experts.w3.weight": [S, D]})
        self.top_k = model["top_k"]
        problem.fill(self, TORCHTITAN)

    def forward(self, x):
        scores, self.chosen = (x @ self.router.gate.weight.T).softmax(-1).topk(self.top_k)
        scores = scores / scores.sum(-1, keepdim=True)
        experts, shared = self.experts, self.shared_experts
        hidden = torch.nn.functional.silu(torch.einsum("td,efd->tef", x, experts.w1))
        out = torch.einsum("tef,edf->ted", hidden * torch.einsum("td,efd->tef", x, experts.w3), experts.w2)
        mixed = torch.zeros(out.shape[:2], dtype=x.dtype).scatter(1, self.chosen, scores)
        hidden = torch.nn.functional.silu(x @ shared.w1.weight.T) * (x @ shared.w3.weight.T)
        return torch.einsum("te,ted->td", mixed, out) + hidden @ shared.w2.weight.T


def stepped(problem, tokens):
    """(layer, arguments for capture) after forward and backward on these rows."""
    layer = Layer(problem)
    x, d_y = problem.rows("x_TD", tokens).requires_grad_(), problem.rows("d_y_TD", tokens)
    y = layer(x)
    (y * d_y).sum().backward()
    return layer, {"x": x, "d_y": d_y, "y": y, "names": TORCHTITAN, "module": layer, "topk_expert": layer.chosen}


class OnRanks:
    """A framework whose ranks do what option "do" says; this file runs as its adapter when it is given --release."""

    name = "tiny"
    options = {"do": ("nothing", "placements", "whole", "half", "subgroup", "lacks", "unowed", "unknown-mesh",
                      "other-mesh", "one-fails", "one-raises", "unwritable", "dies", "killed", "hangs", "skips")}

    def load(self, release):
        if release != "1":
            raise DumpError(f"tiny 1 is installed here, not {release}")

    def check(self, step):
        if step.options["do"] == "skips":
            raise Skip("tiny cannot")

    def run(self, step):
        print("noise of a framework")
        rank = dist.get_rank()
        getattr(self, step.options["do"].replace("-", "_"))(step, rank)

    def nothing(self, step, rank):
        pathlib.Path(step.out).with_name(f"rank-{rank}-was-here").touch()

    def placements(self, step, rank, without=None, **options):
        """Gradients as FSDP leaves them: owed, sharded in part, and under way; that of `without` is None."""
        problem = load_inputs(step.problem)
        layer, given = stepped(problem, step.layout.tokens(problem.model["tokens"], rank))
        name, ranks = options.pop("mesh_name", "fsdp"), options.pop("mesh_ranks", [0, 1])
        mesh = options.pop("mesh", None) or DeviceMesh("cpu", ranks, mesh_dim_names=(name,))
        group = mesh.get_group()
        gradients = {parameter: parameter.grad for parameter in layer.parameters()}

        def owed(grad):
            return DTensor.from_local(grad, mesh, [Partial()])

        def under_way(grad):
            return collectives.all_reduce(grad, "sum", group)

        gate, experts, shared = layer.router.gate.weight, layer.experts, layer.shared_experts
        gradients[gate] = owed(gate.grad)
        gradients[experts.w1] = owed(experts.w1.grad).redistribute(mesh, [Shard(0)])
        gradients[experts.w2] = under_way(experts.w2.grad)
        gradients[experts.w3] = DTensor.from_local(
            collectives.reduce_scatter_tensor(experts.w3.grad, "sum", 0, group), mesh, [Shard(0)])
        gradients[shared.w1.weight] = DTensor.from_local(shared.w1.weight.grad * 2, mesh, [Partial("avg")])
        gradients[shared.w3.weight] = under_way(shared.w3.weight.grad)
        gradients[shared.w2.weight] = under_way(shared.w2.weight.grad)
        assert type(gradients[experts.w2]).__name__ == "AsyncCollectiveTensor"
        gradients = {parameter: None if name == without else gradients[parameter]
                     for name, parameter in layer.named_parameters()}
        capture(step.out, layout=step.layout, problem=problem,
                **{**given, "gradient": gradients.__getitem__, **options})

    def whole(self, step, rank):
        self.placements(step, rank, full=True)

    def half(self, step, rank):
        """A gradient that is to be gathered, and one rank has none."""
        self._said(step, rank, full=True, without="experts.w1" if rank == 1 else None)

    def subgroup(self, step, rank):
        """Ranks 2 and 3 of four are a step of two."""
        group, mesh = dist.new_group([2, 3]), DeviceMesh("cpu", [2, 3], mesh_dim_names=("fsdp",))
        if rank >= 2:
            self.placements(replace(step, layout=Layout.parse("dp2")), rank - 2, mesh=mesh, full=True, group=group)

    def lacks(self, step, rank):
        self.placements(step, rank, without="experts.w1" if rank == 1 else None)

    def unowed(self, step, rank):
        """Claims the router's gradient to be whole, which nothing summed."""
        self.placements(step, rank, claims={"gate_ED": {"dp_shard": "R"}})

    def _said(self, step, rank, **options):
        try:
            self.placements(step, rank, **options)
        except DumpError as error:
            pathlib.Path(step.out).with_name(f"said-{rank}").write_text(str(error))
            raise

    def unknown_mesh(self, step, rank):
        self._said(step, rank, mesh_name="rows")

    def other_mesh(self, step, rank):
        self._said(step, rank, mesh_ranks=[1, 0])

    def one_fails(self, step, rank):
        self._said(step, rank, **({"topk_expert": torch.zeros(5, 5)} if rank == 1 else {}))

    def one_raises(self, step, rank):
        self._said(step, rank, **({"gradient": lambda parameter: parameter.main_grad} if rank == 1 else {}))

    def unwritable(self, step, rank):
        if rank == 1:
            def full(*arguments, **options):
                raise OSError("no space left")

            capture.__globals__["save_file"] = full
        self._said(step, rank)

    def dies(self, step, rank):
        if rank == 1:
            print("going down", flush=True)
            os._exit(7)
        dist.barrier()

    def killed(self, step, rank):
        if rank == 1:
            os.kill(os.getpid(), 9)
        dist.barrier()

    def hangs(self, step, rank):
        print(f"rank {rank} waits", flush=True)
        time.sleep(600)


class WithProblem(unittest.TestCase):
    case = CASE

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.problem_folder = pathlib.Path(folder.name, "problem")
        subprocess.run([MOEGATE, "inputs", cls.case, "--out", cls.problem_folder], cwd=CLONE, check=True,
                       stdout=subprocess.DEVNULL)
        cls.problem = load_inputs(cls.problem_folder)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.dump = self.folder / "dump"

    def judged(self, word, *sentences):
        """Checks the dump, and that the verdict starts with `word` and has the sentences; returns the manifest."""
        done = subprocess.run([MOEGATE, "check", self.dump], cwd=CLONE, check=False, capture_output=True,
                              text=True)
        self.assertTrue(done.stdout.startswith(word), done.stdout + done.stderr)
        for sentence in sentences:
            self.assertIn(sentence, done.stdout)
        return json.loads((self.dump / "manifest.json").read_text())

    def refused(self, *sentences):
        """As assertRaises, for DumpError with these parts; one sentence."""
        test = self

        class Refused:
            def __enter__(self):
                return self

            def __exit__(self, kind, error, trace):
                test.assertIs(kind, DumpError, error)
                test.assertNotIn("\n", str(error))
                for sentence in sentences:
                    test.assertIn(sentence, str(error))
                return True

        return Refused()


class LayoutTest(WithProblem):
    def test_parses(self):
        self.assertEqual(Layout.parse("dpr2.dp3.cp2.tp2.ep4.etp1.lb5.sp0"),
                         Layout(2, 3, 2, 2, ep=4, etp=1, sp=False, local_batch=5))
        self.assertEqual(Layout.parse("tp4").etp, 4)
        self.assertEqual(Layout.parse("tp4.ep2").etp, 1)
        self.assertEqual((Layout.parse("dp2.tp4.ep2").world, Layout.parse("dp2.tp4.ep2").edp), (8, 4))

    def test_refuses(self):
        for text, sentence in (("tp2.tp2", '"tp2" is not a part, or stands twice'), ("pp2", '"pp2" is not a part'),
                               ("tp", '"tp" is not a part'), ("", '"" is not a part'), ("tp0", "a size of 0"),
                               ("tp2.ep3", "does not divide the 2 ranks")):
            with self.subTest(text), self.refused(sentence):
                Layout.parse(text)

    def test_tokens(self):
        layout = Layout.parse("dp2.tp2.lb2")
        self.assertEqual([layout.tokens(16, rank) for rank in range(4)],
                         [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
        self.assertEqual(layout.tokens_side_by_side(16, 1), [2, 6, 3, 7])
        self.assertEqual(Layout.parse("cp2.tp2").tokens(8, 2), [4, 5])
        self.assertEqual(Layout.parse("dp2.tp2.sp0").tokens(8, 3), [4, 5, 6, 7])
        self.assertEqual(layout.tokens(16, 1, over_tp=False), list(range(8)))
        with self.refused("12 tokens cannot be spread evenly over 8 parts"):
            layout.tokens(12, 0)

    def test_groups(self):
        layout = Layout.parse("dp2.tp2.ep2.etp1")
        self.assertEqual(layout.group(1, ("tp",)), [0, 1])
        self.assertEqual(layout.group(1, ("dp_shard",)), [1, 3])
        self.assertEqual(layout.group(2, ("edp",)), [0, 2])
        self.assertEqual(layout.group(2, ("dp_shard", "tp")), [0, 1, 2, 3])
        coordinates = [layout.coordinate(2, axis) for axis in ("dp_shard", "tp", "edp", "ep", "etp")]
        self.assertEqual(coordinates, [1, 0, 1, 0, 0])

    def test_shards(self):
        value, layout = torch.arange(8), Layout.parse("dp2.tp2")

        def held(rank, **claims):
            return shard_of(value, claims, layout, rank, "dense").tolist()

        self.assertEqual(held(1, dp_shard="S(0)", tp="S(0)"), [2, 3])
        self.assertEqual(held(1, dp_shard="P", tp="R"), list(range(8)))
        self.assertEqual(held(1, tp="SS(0,2)"), [2, 3, 6, 7])
        self.assertEqual(held(1, dp_shard="SS(0,2)", tp="S(0)"), [4, 5])  # FSDP over a tp shard
        value = torch.arange(3)
        self.assertEqual([held(rank, dp_shard="S(0)", tp="S(0)") for rank in range(4)], [[0], [1], [2], []])
        with self.refused('"S0" is not a placement'):
            held(0, tp="S0")


class NamesTest(WithProblem):
    def names_of(self, names, parameter):
        found = find(names, parameter)
        return found and (*found.holds.tensors, found.expert)

    def test_finds(self):
        for names, parameter, expected in (
                (TORCHTITAN, "layers.1.moe.router.gate.weight", ("gate_ED", None)),
                (TORCHTITAN, "inner_experts.w3_EFD", ("w3_EFD", None)),
                (TORCHTITAN, "myexperts.w1", None),
                (HUGGING_FACE, "model.layers.0.mlp.experts.11.up_proj.weight", ("w3_EFD", 11)),
                (HUGGING_FACE, "mlp.experts.gate_up_proj", ("w1_EFD", "w3_EFD", None)),
                (HUGGING_FACE, "mlp.experts.x.up_proj.weight", None),
                (MEGATRON, "mlp.experts.local_experts.3.linear_fc1.weight", ("w1_EFD", "w3_EFD", 3)),
                (MEGATRON, "mlp.experts.linear_fc2.weight12", ("w2_EDF", 12)),
                (MEGATRON, "mlp.linear_fc1.weight", None)):
            with self.subTest(parameter):
                self.assertEqual(self.names_of(names, parameter), expected)

    def test_the_longest_line_wins(self):
        for names in ({"w": "gate_ED", "b.w": "w1_EFD"}, {"b.w": "w1_EFD", "w": "gate_ED"}):
            self.assertEqual(self.names_of(names, "a.b.w"), ("w1_EFD", None))
        with self.refused('"gate" is not a tensor of a problem'):
            Holds("gate")

    def roundtrip(self, names, shapes, problem=None, **where):
        """The filled parameters; and capture finds in them what fill put there."""
        module = Parameters(**shapes)
        self.problem.fill(module, names, **where)
        x = torch.zeros_like(self.problem.tensors["x_TD"])
        capture(self.dump, layout=Layout(), x=x, d_x=x, d_y=x, y=x, names=names, module=module, problem=self.problem,
                gradient=lambda parameter: parameter)
        held = load_file(self.dump / "rank-00000.safetensors")
        for name, value in self.problem.tensors.items():
            if name not in ("x_TD", "d_y_TD"):
                self.assertTrue(torch.equal(held[f"d_{name}"], value), name)
        shutil.rmtree(self.dump)
        return dict(module.named_parameters())

    def test_fused_transposed_and_single_experts(self):
        model, whole = self.problem.model, self.problem.tensors
        E, D, F, S = (model[key] for key in ("experts", "d_model", "d_expert", "d_shared"))
        rest = {"gate.weight": [E, D], "shared_expert.gate_proj.weight": [S, D], "shared_expert.up_proj.weight": [S, D],
                "shared_expert.down_proj.weight": [D, S]}
        fused = torch.cat([whole["w1_EFD"], whole["w3_EFD"]], dim=1)

        held = self.roundtrip(HUGGING_FACE, {**rest, "experts.gate_up_proj": [E, 2 * F, D],
                                             "experts.down_proj": [E, D, F]})
        self.assertTrue(torch.equal(held["experts.gate_up_proj"], fused))
        held = self.roundtrip(HUGGING_FACE_TRANSPOSED, {**rest, "experts.gate_up_proj": [E, D, 2 * F],
                                                        "experts.down_proj": [E, F, D]})
        self.assertTrue(torch.equal(held["experts.gate_up_proj"], fused.transpose(1, 2)))
        interleaved = {**HUGGING_FACE, "experts.gate_up_proj": Holds("w1_EFD", "w3_EFD", interleaved=True)}
        held = self.roundtrip(interleaved, {**rest, "experts.gate_up_proj": [E, 2 * F, D],
                                            "experts.down_proj": [E, D, F]})
        self.assertTrue(torch.equal(held["experts.gate_up_proj"][:, 1::2], whole["w3_EFD"]))
        single = {f"experts.{e}.{part}.weight": [D, F] if part == "down_proj" else [F, D]
                  for e in reversed(range(E)) for part in ("gate_proj", "up_proj", "down_proj")}
        held = self.roundtrip(HUGGING_FACE, {**rest, **single})
        self.assertTrue(torch.equal(held["experts.10.up_proj.weight"], whole["w3_EFD"][10]))

    def test_fill_refuses(self):
        E, D = self.problem.tensors["gate_ED"].shape
        gate = {"router.gate.weight": [E, D]}
        for shapes, where, sentence in (
                ({**gate, "norm": [D]}, {}, "parameter norm is in no line of the name map"),
                ({"router.gate.weight": [D, E]}, {}, "parameter router.gate.weight has shape"),
                (gate, {}, "no parameter of the module took w1_EFD"),
                ({"router.gate.bias": [E]}, {}, "router.gate.bias is gate_bias_E, which the problem lacks"),
                (gate, {"claims": {"gate_ED": {"tp": "S(0)"}}}, "fill needs the layout and the rank")):
            with self.subTest(sentence), self.refused(sentence):
                self.problem.fill(Parameters(**shapes), TORCHTITAN, **where)
        with self.refused("the module has 2 experts", 'claim {"ep": "S(0)"}'):
            self.problem.fill(Parameters(**{f"experts.{e}.w2.weight": [D, 1] for e in range(2)}), HUGGING_FACE)
        with self.refused("is not what `moegate inputs CASE --out"):
            load_inputs(self.folder)


class CaptureTest(WithProblem):
    def capture(self, **options):
        _, given = stepped(self.problem, list(range(self.problem.model["tokens"])))
        given = {**given, "layout": Layout(), "problem": self.problem, **options}
        for name in [name for name, value in given.items() if value is None]:
            del given[name]
        return capture(self.dump, **given)

    def test_a_right_step_passes(self):
        self.assertEqual(self.capture(), self.dump)
        self.judged("PASS")

    def test_without_a_problem_the_inputs_are_dumped(self):
        self.capture(problem=None, model=self.problem.model)
        self.assertIn("w2_EDF", self.judged("PASS")["tensors"])

    def test_a_wrong_step_fails(self):
        self.capture(gradient=lambda parameter: parameter.grad * (2 if parameter.shape[0] == 12 else 1))
        self.judged("FAIL", "d_gate_ED", "d_w1_EFD")

    def test_what_is_left_out_is_not_read(self):
        experts = ("d_w1_EFD", "d_w3_EFD", "d_w2_EDF")
        self.capture(not_dumped=experts, gradient=lambda parameter: parameter.grad if parameter.dim() == 2 else 1 / 0)
        self.judged("PASS", *(f"{tensor}: left out on purpose" for tensor in experts))

    def test_a_factor_is_made_good(self):
        self.capture(gradient=lambda parameter: parameter.grad / 4, scale={"dense": 4.0, "expert": 4.0})
        self.judged("PASS")

    def test_no_gradient_is_missing_and_not_zero(self):
        self.capture(gradient=lambda parameter: None if parameter.dim() == 3 else parameter.grad)
        manifest = self.judged("VACUOUS", "experts.w1 is None")
        self.assertEqual(manifest["missing"]["d_w2_EDF"], "the gradient of experts.w2 is None on rank 0")
        self.assertNotIn("d_w2_EDF", manifest["tensors"])

    def test_an_expert_bias_owes_no_gradient_and_is_0_where_the_problem_has_none(self):
        layer, given = stepped(self.problem, list(range(self.problem.model["tokens"])))
        layer.register_parameter("expert_bias", torch.nn.Parameter(torch.ones(self.problem.model["experts"])))
        capture(self.dump, layout=Layout(), model=self.problem.model, **given)
        self.assertNotIn("expert_bias_E", self.judged("PASS")["tensors"])
        self.problem.fill(layer, TORCHTITAN)
        self.assertTrue(layer.expert_bias.eq(0).all())

    def test_refuses_and_leaves_nothing(self):
        for options, sentence in (
                ({"names": {"router.gate.weight": "gate_ED"}}, "experts.w1 is in no line of the name map"),
                ({"gradient": lambda parameter: parameter.grad[1:]}, "gate_ED has the local shape [11, "),
                ({"claims": {"w1_EFD": {"ep": "S(0)"}}, "layout": Layout.parse("dp2.ep2")}, "the layout has 2 ranks"),
                ({"tokens": [0, 1]}, "y_TD has the local shape"),
                ({"model": self.problem.model}, "give either problem or model"),
                ({"claims": {"w1": {}}}, 'claims or scale for "w1"'),
                ({"claims": {"gate_ED": {"ep": "P"}}}, '"ep" is not an axis of the dense mesh'),
                ({"gradient": lambda parameter: parameter.main_grad}, "AttributeError")):
            with self.subTest(sentence):
                with self.refused(sentence):
                    self.capture(**options)
                self.assertEqual(list(self.folder.iterdir()), [])

    def test_what_a_dead_run_left_does_not_stay(self):
        left = self.folder / "dump.partial"
        left.mkdir()
        (left / "rank-00001.safetensors").touch()
        self.capture()
        self.judged("PASS")
        self.assertFalse((self.dump / "rank-00001.safetensors").exists())

    def test_another_folder_is_left_alone(self):
        self.dump.mkdir()
        with self.refused("is there already"):
            self.capture()
        self.assertEqual(list(self.folder.rglob("*")), [self.dump])


class RanksTest(WithProblem):
    """The ranks' side is OnRanks."""

    def serve(self, *todo, deadline_s=60, layout="dp2"):
        steps = [{"problem": str(self.problem_folder), "layout": layout, "dtype": "float64", "out": str(self.dump),
                  "options": {"do": do}} for do in todo]
        (self.folder / "steps.json").write_text(json.dumps({"deadline_s": deadline_s, "steps": steps}))
        done = subprocess.run([sys.executable, __file__, "--release", "1", "--steps", self.folder / "steps.json"],
                              check=False, capture_output=True, text=True, timeout=200)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual((done.returncode, lines[0]), (0, {"ready": True}), done.stderr)
        self.assertEqual([line["step"] for line in lines[1:]], list(range(len(todo))))
        return lines[1:]

    def assertBothSaid(self, answer, sentence):
        """All ranks failed with one sentence, which is the answer, and left nothing."""
        self.assertIn(sentence, answer.get("error", answer))
        self.assertNotIn("\n", answer["error"])
        for rank in range(2):
            self.assertEqual((self.folder / f"said-{rank}").read_text(), answer["error"])
        self.assertEqual([path for path in self.folder.iterdir() if path.name.startswith("dump")], [])

    def test_reads_placements(self):
        [answer] = self.serve("placements")
        self.assertEqual(answer, {"step": 0, "dump": str(self.dump)})
        tensors = self.judged("PASS")["tensors"]
        for name, placements in (("d_gate_ED", {"dp_shard": "P"}), ("d_w1_EFD", {"edp": "S(0)"}), ("d_w2_EDF", {}),
                                 ("d_w3_EFD", {"edp": "S(0)"})):
            self.assertEqual(tensors[name]["placements"], placements, name)
        self.assertEqual(tensors["d_shared_w1_FD"], {**tensors["d_shared_w3_FD"], "placements": {"dp_shard": "P"},
                                                     "scale": 0.5})

    def test_takes_whole_tensors(self):
        self.serve("whole")
        tensors = self.judged("PASS")["tensors"]
        for name, tensor in tensors.items():
            by_token = name in ("y_TD", "d_x_TD", "topk_expert_TK")
            self.assertEqual(tensor["placements"], {"dp_shard": "S(0)"} if by_token else {}, name)
            self.assertNotIn("scale", tensor)

    def test_takes_whole_tensors_of_a_part_of_the_ranks(self):
        self.serve("subgroup", layout="dp4")
        self.judged("PASS")

    def test_nobody_waits_for_what_a_rank_does_not_have(self):
        self.assertBothSaid(*self.serve("half"), "the gradient of experts.w1 is a DTensor over ranks [0, 1] on rank 0, "
                                                 "and none such on rank 1")

    def test_what_nothing_summed_is_seen(self):
        self.serve("unowed")
        self.judged("FAIL", "d_gate_ED: missing sum over dp_shard")

    def test_an_unknown_mesh_is_refused(self):
        self.assertBothSaid(*self.serve("unknown-mesh"), 'its mesh has the dimension "rows", which is no axis')

    def test_a_mesh_of_another_order_is_refused(self):
        self.assertBothSaid(*self.serve("other-mesh"), 'its mesh dimension "fsdp" is ranks [1, 0], and dp_shard x cp '
                                                       "of this layout ranks [0, 1]")

    def test_what_one_rank_lacks_is_missing(self):
        self.serve("lacks")
        manifest = self.judged("VACUOUS", "d_w1_EFD")
        self.assertEqual(manifest["missing"], {"d_w1_EFD": "the gradient of experts.w1 is None on rank 1"})

    def test_one_rank_fails_all(self):
        self.assertBothSaid(*self.serve("one-fails"), "rank 1: topk_expert_TK has the local shape [5, 5]")
        self.assertBothSaid(*self.serve("one-raises"), "rank 1: AttributeError: 'Parameter' object has no")

    def test_a_rank_that_cannot_write(self):
        self.assertBothSaid(*self.serve("unwritable"), "rank 1: no space left")

    def test_a_rank_that_dies(self):
        dead, killed, fine = self.serve("dies", "killed", "nothing")
        self.assertRegex(dead["error"], "(?s)rank 1 of 2 ended with exit status 7; its last words: .*\ngoing down")
        self.assertIn("rank 1 of 2 was ended by SIGKILL", killed["error"])
        self.assertNotIn("error", fine)
        self.assertTrue((self.folder / "rank-1-was-here").exists())

    def test_a_rank_that_hangs(self):
        hung, skipped, fine = self.serve("hangs", "skips", "nothing", deadline_s=12)
        self.assertRegex(hung["error"], "(?s)ranks 0, 1 of 2 did not end within 12 s; .*\nrank 0 waits")
        self.assertEqual(skipped, {"step": 1, "skipped": "tiny cannot"})
        self.assertIn("dump", fine)


class ExampleTest(WithProblem):
    case = "issues/torchtitan-2387b"  # as the example says

    def run_example(self, *arguments):
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                        HERE / "dtensor_example.py", self.problem_folder, self.dump, *arguments],
                       env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL, timeout=200)

    def test_passes(self):
        self.run_example()
        self.assertEqual(self.judged("PASS")["tensors"]["d_w2_EDF"]["placements"], {"etp": "S(2)"})

    def test_a_forgotten_sum_is_told(self):
        self.run_example("--forget")
        self.judged("FAIL", "d_gate_ED: missing sum over tp", "why    rank 1 (tp=1) holds the share of tp=1 once")


class MegatronTest(WithProblem):
    """Which problems a release of Megatron-core can run; the release itself is not needed to say so."""

    def skipped(self, layout="tp2", **changes):
        """Why, or None."""
        described = json.loads((self.problem_folder / "problem.json").read_text())
        model = {**described["model"], "score_function": "softmax", "route_norm": True, "top_k": 4, **changes}
        folder = self.folder / "problem"
        shutil.copytree(self.problem_folder, folder, dirs_exist_ok=True)
        (folder / "problem.json").write_text(json.dumps({**described, "model": model}))
        megatron = megatron_layer.MegatronCore()
        megatron.release = "0.19.2"
        try:
            megatron.check(Step(str(folder), Layout.parse(layout), torch.float64, str(self.dump)))
        except Skip as skip:
            return str(skip).removeprefix("megatron-core 0.19.2 ")
        return None

    def test_runs(self):
        sigmoid = {"score_function": "sigmoid"}
        for changes in ({}, {"route_norm": False}, {"top_k": 1, "route_norm": False}, {**sigmoid, "expert_bias": True},
                        {"top_k": 1, "route_norm": False, "score_placement": "before_experts"},
                        {**sigmoid, "expert_groups": 4, "limited_groups": 2},
                        {"route_norm": False, "expert_groups": 4, "limited_groups": 2},
                        {"expert_groups": 4, "limited_groups": 4}, {"top_k": 5, "expert_groups": 4, **sigmoid,
                                                                    "limited_groups": 2}):
            with self.subTest(changes):
                self.assertIsNone(self.skipped(**changes))
        self.assertIsNone(self.skipped("sp0.dp2"))

    def test_skips(self):
        groups = {"expert_groups": 4, "limited_groups": 2}
        for why, changes in (
                ("refuses to train an MoE layer with tp and without", {"layout": "tp2.sp0"}),
                ("has a gate bias only together with biases", {"gate_bias": True}),
                ("normalises sigmoid scores where top_k is over 1", {"score_function": "sigmoid", "route_norm": False}),
                ("does not normalise scores where top_k is 1", {"top_k": 1}),
                ("does not normalise scores where top_k is 1", {"top_k": 1, "score_function": "sigmoid"}),
                ("applies scores before the experts only where", {"score_placement": "before_experts"}),
                ("has an expert bias only with sigmoid scores", {"expert_bias": True}),
                ("ranks groups by their top_k / limited_groups best", {**groups, "top_k": 3, "route_norm": False}),
                ("ranks groups by logits where it normalises", groups)):
            with self.subTest(changes):
                self.assertTrue((self.skipped(**changes) or "").startswith(why), self.skipped(**changes))


class ConvertTest(WithProblem):
    def save(self, text, change=None, with_problem=False, **sizes):
        """What ranks of Megatron would have saved of a right step."""
        layout, model = Layout.parse(text), self.problem.model
        saved = self.folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        layer, given = stepped(self.problem, list(range(model["tokens"])))
        rows = {"x": given["x"], "d_y": given["d_y"], "y": given["y"], "d_x": given["x"].grad}
        for rank in range(layout.world):
            tokens = layout.tokens_side_by_side(model["tokens"], rank)
            held = {name: value[tokens].view(-1, layout.local_batch, model["d_model"]) for name, value in rows.items()}
            for kind in ("grad", "weight"):
                share = {}
                for name, parameter in layer.named_parameters():
                    tensor = find(TORCHTITAN, name).holds.tensors[0]
                    value = parameter.grad / (layout.dp_shard * layout.cp) if kind == "grad" else parameter
                    share[tensor] = shard_of(value, MEGATRON_SHARDS.get(tensor, {}), layout, rank, mesh_of(tensor))
                prefix = f"{kind}:decoder.layers.0.mlp."
                held[prefix + "router.weight"] = share["gate_ED"]
                held[prefix + "shared_experts.linear_fc1.weight"] = torch.cat([share["shared_w1_FD"],
                                                                               share["shared_w3_FD"]])
                held[prefix + "shared_experts.linear_fc2.weight"] = share["shared_w2_DF"]
                for e in range(len(share["w1_EFD"])):
                    expert = f"{prefix}experts.local_experts.{e}.linear_fc"
                    held[expert + "1.weight"] = torch.cat([share["w1_EFD"][e], share["w3_EFD"][e]])
                    held[expert + "2.weight"] = share["w2_EDF"][e]
            if with_problem:
                held = {name: value for name, value in held.items() if not name.startswith("weight:")}
            if change:
                change(rank, held)
            save_file({name: value.detach().clone() for name, value in held.items()},
                      saved / f"rank-{rank:05}.safetensors")
        where = {"problem": str(self.problem_folder)} if with_problem else {"model": model}
        (saved / "sizes.json").write_text(json.dumps({"layout": text, "producer": "a test", **where, **sizes}))
        return saved

    def convert(self):
        """Its main function, in this process: importing torch takes seconds."""
        out, err, status = io.StringIO(), io.StringIO(), 0
        command = ["megatron_convert.py", str(self.folder / "saved"), "--out", str(self.dump)]
        with mock.patch("sys.argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                megatron_convert.main()
            except SystemExit as end:
                status = end.code
        return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())

    def converted(self, word, *sentences):
        done = self.convert()
        self.assertEqual((done.returncode, done.stdout), (0, f"{self.dump}\n"), done.stderr)
        manifest = self.judged(word, *sentences)
        shutil.rmtree(self.dump)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["saved"])
        return manifest

    def test_right_gradients_pass(self):
        for text in ("tp2.etp2", "tp2.ep2.etp1", "dp2.lb2.ep2"):
            for with_problem in (False, True):
                with self.subTest(text, with_problem=with_problem):
                    self.save(text, with_problem=with_problem)
                    manifest = self.converted("PASS")
                    self.assertEqual(manifest["casts"], {"scores_TE": "float32"})
                    self.assertEqual("w1_EFD" in manifest["tensors"], not with_problem)

    def test_wrong_gradients_fail(self):
        def halve(rank, held):
            held["grad:decoder.layers.0.mlp.router.weight"] *= 0.5

        self.save("dp2", halve)
        self.converted("FAIL", "d_gate_ED")
        self.save("dp2", scale=1)  # which was averaged over 2
        self.converted("FAIL", "d_gate_ED", "d_w1_EFD")

    def test_a_gradient_that_is_left_out_is_missing(self):
        self.save("tp2", lambda rank, held: held.pop("grad:decoder.layers.0.mlp.router.weight"))
        self.assertIn("d_gate_ED", self.converted("VACUOUS")["missing"])
        expert = "decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight"
        self.save("tp2", lambda rank, held: rank == 0 and held.pop("grad:" + expert))
        self.assertEqual(self.converted("VACUOUS")["missing"],
                         {"d_w2_EDF": f"the gradient of {expert} is None on rank 0"})

    def test_refuses_and_leaves_nothing(self):
        router = "decoder.layers.0.mlp.router.weight"

        def cut(rank, held):
            held["grad:" + router] = held["grad:" + router][1:]

        def turn(rank, held):
            held["x"] = held["x"].flip(0)

        for change, options, sentence in (
                (lambda rank, held: held.pop("d_x"), {}, 'rank-00000.safetensors lacks "d_x"'),
                (lambda rank, held: held.pop("weight:" + router), {}, "lacks the weight:NAME that is gate_ED"),
                (lambda rank, held: held.update({"grad:mlp.norm.weight": torch.zeros(1)}), {}, '"grad:mlp.norm'),
                (lambda rank, held: held.update(z=torch.zeros(1)), {}, '"z" is nothing of an MoE layer'),
                (lambda rank, held: held.update({"grad:layers.1." + router: held["grad:" + router]}), {}, "gate_ED"),
                (cut, {}, "gate_ED has the local shape"),
                (turn, {"with_problem": True}, '"x" is not the problem\'s x_TD'),
                (lambda rank, held: held.update(y=held["y"].transpose(0, 1)), {}, '"y" has the shape [1, 48'),
                (None, {"layout": "tp4"}, "rank-00002.safetensors is not there"),
                (None, {"layout": "dp1"}, "rank-00001.safetensors is there, and the layout dp1 has 1 ranks"),
                (None, {"layout": "pp2"}, '"pp2" is not a part'), (None, {"layout": 2}, '"layout" is 2'),
                (None, {"scales": 2}, '"scales" is none of'), (None, {"scale": "2"}, '"scale" is "2"'),
                (None, {"model": {"tokens": 96}}, '"model" needs "d_model"'),
                (None, {"tokens": [[0]]}, '"tokens" has 1 lists'), (None, {"tokens": [0, 1]}, '"tokens" is not a list'),
                (None, {"problem": "nowhere"}, "is not what `moegate inputs")):
            with self.subTest(sentence):
                self.save("tp2", change, **options)
                self.assertRefused(sentence)
        for file, text, sentence in (("sizes.json", "{", "is not JSON"), ("sizes.json", "[]", "is not a JSON object"),
                                     ("rank-00001.safetensors", "{}", "is not a safetensors file")):
            with self.subTest(sentence):
                (self.save("tp2") / file).write_text(text)
                self.assertRefused(sentence)

    def assertRefused(self, sentence):
        done = self.convert()
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertIn(sentence, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["saved"])


if __name__ == "__main__":
    if "--release" in sys.argv:
        serve(OnRanks())
    else:
        if len(sys.argv) > 1 and os.access(sys.argv[1], os.X_OK):
            MOEGATE = os.path.abspath(sys.argv.pop(1))
        unittest.main()
