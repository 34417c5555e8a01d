"""torchtitan 0.2.0, 0.2.1 and 0.2.2: their own MoE layer, parallelised by their own apply_moe_ep_tp and apply_fsdp.

What a CPU forces, and nothing else (on CUDA only the last holds):

- parallel_dims.device_type and tools.utils.device_type are "cpu": they are guessed at import, and where no
  accelerator is found the guess is "cuda".
- torch.histc of whole numbers counts with bincount: it has no int64 kernel on a CPU. The counts are the same.
- generate_permute_indices is called with its own use_cpu=True: the default is a Triton kernel.
- MoEArgs(use_grouped_mm=False): the experts run as torchtitan's own loop, since torch._grouped_mm rounds to bfloat16
  and a CPU has none for float64.

The gradients are dumped as they are. Without FSDP nothing was summed over the data-parallel ranks, which is claimed
("P" on dp_replicate, dp_shard, cp and edp); with FSDP every rank's full_tensor() is dumped and claimed finished.
"""

import functools

import torch
from moegate_dump import TORCHTITAN, Skip, capture, load_inputs
from moegate_dump.ranks import Step, installed_release
from torchtitan_model import Block, Model


class Torchtitan02:
    name = "torchtitan"
    options = {"fsdp": ("off", "on"), "device": ("cpu", "cuda")}

    def load(self, release: str) -> None:
        self.release = installed_release("torchtitan", release)
        from torchtitan.distributed import parallel_dims
        from torchtitan.models.llama4.infra import parallelize
        from torchtitan.models.moe import moe

        self.parallel_dims, self.parallelize, self.moe = parallel_dims, parallelize, moe

    def check(self, step: Step) -> None:
        model, layout, me = load_inputs(step.problem).model, step.layout, f"torchtitan {self.release}"
        fields = self.moe.MoEArgs.__dataclass_fields__
        if model.get("gate_bias") and "gate_bias" not in fields:
            raise Skip(f"{me} has no gate bias")
        if model.get("expert_groups", 1) > 1 and "num_expert_groups" not in fields:
            raise Skip(f"{me} has no group-limited selection")
        if model.get("shared_gate"):
            raise Skip(f"{me} has no gate on its shared experts")
        if layout.world == 1:
            raise Skip(f"{me} parallelises nothing on one rank")
        if layout.tp > 1 and not layout.sp:
            raise Skip(f"{me} takes the layer's input sharded over tp only (sequence parallelism)")
        if layout.ep == 1 and layout.etp != layout.tp:
            raise Skip(f"{me} shards the experts over tp where ep is 1, not over etp {layout.etp} with tp {layout.tp}")
        if layout.ep == 1 and layout.tp == 1:
            raise Skip(f"{me} parallelises the MoE layer over tp and ep, and both are 1")
        if step.options["fsdp"] == "on" and layout.dp_shard * layout.cp == 1:
            raise Skip(f"{me} applies FSDP where dp_shard * cp is over 1")
        try:
            self._dims(layout)
        except AssertionError as error:
            why = str(error) or "an assertion on how ep borrows from dp, cp and tp"
            raise Skip(f"{me}'s ParallelDims refuses this layout: {why}") from None

    def run(self, step: Step) -> None:
        self._adapt(step.device)
        rank, layout, problem = torch.distributed.get_rank(), step.layout, load_inputs(step.problem)
        model = problem.model
        block = self._block(model, step.dtype, step.device)
        problem.fill(block.moe, TORCHTITAN)
        root = self._parallelise(block, step)

        tokens = layout.tokens(model["tokens"], rank)

        def rows(name):
            return problem.rows(name, tokens).to(step.device, step.dtype).view(layout.local_batch, -1, model["d_model"])

        chosen = []
        block.moe.router.register_forward_hook(lambda module, inputs, outputs: chosen.append(outputs[1]))
        x, d_y = rows("x_TD").requires_grad_(), rows("d_y_TD")
        y = root(x)
        (y * d_y).sum().backward()

        # The router sees the tokens of all tp ranks; each dumps the choices for its own.
        topk = chosen[0].view(layout.local_batch, layout.tp, -1, model["top_k"])[:, layout.coordinate(rank, "tp")]
        fsdp = step.options["fsdp"] == "on"
        owed = {} if fsdp else {"dense": {"dp_replicate": "P", "dp_shard": "P", "cp": "P"}, "expert": {"edp": "P"}}
        # Up to 0.2.1 FSDP averages; since then the loss is divided by the tokens instead.
        averaged = layout.dp_replicate * layout.dp_shard * layout.cp if fsdp and self._averages() else 1
        capture(step.out, layout=layout, x=x, d_y=d_y, y=y, module=block.moe, names=TORCHTITAN, problem=problem,
                tokens=tokens, topk_expert=topk, claims=owed, full=fsdp, casts=self._casts(model, step.dtype),
                scale={"dense": averaged, "expert": averaged},
                producer=f"torchtitan {self.release}, MoE layer{', FSDP' if fsdp else ''}",
                versions={"torchtitan": self.release})

    def _adapt(self, device):
        import torchtitan.models.moe.utils as moe_utils
        import torchtitan.tools.utils as tools_utils

        self.parallel_dims.device_type = tools_utils.device_type = device
        if device == "cpu":
            moe_utils.generate_permute_indices = functools.partial(moe_utils.generate_permute_indices, use_cpu=True)
            torch.histc = _counted_histc(torch.histc)

    def _dims(self, layout):
        # etp is meaningful with ep only: the experts are sharded over tp without it, whatever etp is.
        return self.parallel_dims.ParallelDims(
            dp_replicate=layout.dp_replicate, dp_shard=layout.dp_shard, cp=layout.cp, tp=layout.tp, pp=1, ep=layout.ep,
            etp=layout.etp if layout.ep > 1 else 1, world_size=layout.world)

    def _block(self, model, dtype, device):
        groups = model.get("expert_groups", 1)
        settings = {
            "num_experts": model["experts"], "num_shared_experts": 1 if model.get("d_shared") else 0,
            "score_func": model.get("score_function", "softmax"), "route_norm": model.get("route_norm", False),
            "route_scale": model.get("route_scale", 1.0), "top_k": model["top_k"],
            "score_before_experts": model.get("score_placement", "after_experts") == "before_experts",
            "use_grouped_mm": False, "load_balance_coeff": 1e-3 if model.get("expert_bias") else None,
            "gate_bias": model.get("gate_bias", False), "num_expert_groups": groups if groups > 1 else None,
            "num_limited_groups": model.get("limited_groups", 1) if groups > 1 else None,
        }
        fields = self.moe.MoEArgs.__dataclass_fields__
        arguments = self.moe.MoEArgs(**{name: value for name, value in settings.items() if name in fields})
        torch.set_default_dtype(dtype)  # for the parameters; buffers are float32 whatever it is
        try:
            moe = self.moe.MoE(arguments, dim=model["d_model"], hidden_dim=model["d_expert"])
            if model.get("d_shared"):
                moe.shared_experts = self.moe.FeedForward(dim=model["d_model"], hidden_dim=model["d_shared"])
        finally:
            torch.set_default_dtype(torch.float32)
        moe.tokens_per_expert.zero_()
        return Block(moe).to(device)

    def _parallelise(self, block, step):
        dims, root = self._dims(step.layout), Model(block)
        meshes = dims.build_mesh()
        if not hasattr(dims, "get_optional_mesh"):  # 0.2.0
            enabled = dims.tp_enabled and dims.ep_enabled and dims.etp_enabled
            self.parallelize.apply_moe_ep_tp(root, meshes["tp"] if dims.tp_enabled else None,
                                             meshes["ep"] if dims.ep_enabled else None,
                                             meshes["ep", "tp"] if enabled else None, dims.etp_enabled)
        else:
            self.parallelize.apply_moe_ep_tp(root, dims.get_optional_mesh("tp"), dims.get_optional_mesh("ep"),
                                             dims.get_optional_mesh("etp"), dims.get_optional_mesh(["ep", "etp"]))
        if step.options["fsdp"] == "on":
            replicate = ["dp_replicate"] if dims.dp_replicate_enabled else []
            if not hasattr(dims, "get_optional_mesh"):
                dense = meshes[(*replicate, "dp_shard_cp")]
                expert = {"dp_mod_ep_mesh": meshes[(*replicate, "dp_shard_mod_ep")] if dims.ep_enabled else None}
            else:
                dense = dims.get_mesh([*replicate, "fsdp"])
                expert = {"edp_mesh": dims.get_optional_mesh([*replicate, "efsdp"])}
            self.parallelize.apply_fsdp(root, dense, param_dtype=step.dtype, reduce_dtype=step.dtype, pp_enabled=False,
                                        ep_degree=dims.ep, gradient_divide_factor=dims.fsdp_gradient_divide_factor,
                                        **expert)
        return root

    def _averages(self):
        return not hasattr(self.parallelize, "disable_fsdp_gradient_division")

    def _casts(self, model, dtype):
        if dtype != torch.float64:
            return {"scores_TE": "float32"}
        before = model.get("score_placement", "after_experts") == "before_experts"
        return {"scores_TE": "float32", "routed_in_ND" if before else "routed_out_ND": "float32"}


def _counted_histc(histc):
    def counted(values, bins, min, max):  # noqa: A002  as torch names them
        if values.is_floating_point():
            return histc(values, bins=bins, min=min, max=max)
        return torch.bincount(values, minlength=bins)

    return counted
