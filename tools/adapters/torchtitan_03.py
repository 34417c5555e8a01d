"""torchtitan 0.3.0: its own MoE layer, parallelised by its own sharding configuration and apply_fsdp_to_decoder.

What a CPU forces, and nothing else (on CUDA only the last holds, and there only in float64 and float32):

- parallel_dims.device_type and tools.utils.device_type are "cpu": they are guessed at import, and where no
  accelerator is found the guess is "cuda".
- Under spmd_types the dispatcher exchanges tokens by functional all_to_all_single, as its own code does for the other
  backends and under a compiler: Gloo's list all-to-all, which spmd_types uses, refuses uneven splits.
- Except in bfloat16, GroupedExperts does not round to bfloat16 and multiplies expert by expert: torch._grouped_mm takes
  no float64, and rounding to bfloat16 would hide what is looked for.

The gradients are dumped as they are, with what torchtitan means by them (`_claims`). With FSDP every rank's
full_tensor() is dumped and claimed finished, which leaves no convention to guess.
"""


import torch
import torch.distributed as dist
from moegate_dump import TORCHTITAN, Skip, capture, load_inputs
from moegate_dump.placement import local_value
from moegate_dump.ranks import Step, installed_release
from torchtitan_model import Block, Model


class Torchtitan03:
    name = "torchtitan"
    options = {"backend": ("spmd_types", "partial_dtensor", "full_dtensor"), "fsdp": ("off", "on"),
               "device": ("cpu", "cuda")}

    def load(self, release: str) -> None:
        self.release = installed_release("torchtitan", release)
        import spmd_types
        import torchtitan.models.common.config_utils as config
        from torchtitan.distributed import fsdp, full_dtensor, parallel_dims, utils
        from torchtitan.models.common import moe, moe_sharding, token_dispatcher

        self.spmd, self.fsdp, self.full_dtensor, self.parallel_dims = spmd_types, fsdp, full_dtensor, parallel_dims
        self.utils, self.config, self.moe, self.moe_sharding = utils, config, moe, moe_sharding
        self.token_dispatcher = token_dispatcher

    def check(self, step: Step) -> None:
        model, layout, me = load_inputs(step.problem).model, step.layout, f"torchtitan {self.release}"
        backend = step.options["backend"]
        if model.get("score_placement", "after_experts") == "before_experts":
            raise Skip(f"{me} applies scores after the experts only")
        if model.get("shared_gate"):
            raise Skip(f"{me} has gated shared experts in Qwen3.5 only, whose import needs flash-linear-attention")
        if layout.world == 1:
            raise Skip(f"{me} parallelises nothing on one rank")
        if layout.etp != (layout.tp if layout.ep == 1 else 1):
            raise Skip(f"{me} has no expert tensor parallelism: etp is tp where ep is 1, else 1")
        if layout.ep == 1 and layout.tp == 1 and step.options["fsdp"] == "off":
            raise Skip(f"{me} parallelises the MoE layer over tp and ep, and both are 1")
        if (layout.dp_shard * layout.cp * layout.tp) % layout.ep != 0:
            raise Skip(f"{me} needs ep to divide dp_shard * cp * tp")
        if layout.cp > 1 and backend == "partial_dtensor":
            raise Skip(f"{me} has no context parallelism under partial_dtensor")
        if step.dtype == torch.bfloat16 and (model["d_model"] % 8 or model["d_expert"] % (8 * layout.etp)):
            raise Skip(f"{me}'s grouped product needs d_model and each rank's part of d_expert to be multiples of 8")

    def run(self, step: Step) -> None:
        layout, backend, fsdp = step.layout, step.options["backend"], step.options["fsdp"] == "on"
        self._adapt(step)
        rank, problem = dist.get_rank(), load_inputs(step.problem)
        model = problem.model
        self.utils.set_spmd_backend(backend)
        dims = self.parallel_dims.ParallelDims(
            dp_replicate=layout.dp_replicate, dp_shard=layout.dp_shard, cp=layout.cp, tp=layout.tp, pp=1, ep=layout.ep,
            world_size=layout.world, spmd_backend=backend)
        dims.build_mesh()
        moe = self._layer(model, step)
        problem.fill(moe, TORCHTITAN)

        tokens = layout.tokens(model["tokens"], rank)

        def rows(name):
            return problem.rows(name, tokens).to(step.device, step.dtype).view(layout.local_batch, -1, model["d_model"])

        chosen = []
        moe.router.register_forward_hook(lambda module, inputs, outputs: chosen.append(outputs[1]))
        x, d_y = rows("x_TD").requires_grad_(), rows("d_y_TD")
        # As torchtitan's trainer does: its backward pass relies on the context of this thread.
        with self.utils.get_spmd_context(parallel_dims=dims)(), torch.autograd.set_multithreading_enabled(False):
            root = Model(Block(moe))
            if dims.tp_enabled or dims.ep_enabled:
                moe.parallelize(dims)
            if fsdp:
                self._shard(root, dims, step.dtype)
            y = root(self._input(x, dims, layout))
            _backward(y, d_y)

            capture(step.out, layout=layout, x=x, d_y=d_y, y=y, module=moe, names=TORCHTITAN, problem=problem,
                    tokens=tokens, topk_expert=_own_choices(chosen[0], x, layout, rank),
                    claims={} if fsdp else self._claims(backend, layout), axes={"dp": ("dp_replicate", "dp_shard")},
                    full=fsdp, casts=self._casts(step),
                    producer=f"torchtitan {self.release}, MoE layer, {backend}{', FSDP' if fsdp else ''}",
                    versions={"torchtitan": self.release})

    def _adapt(self, step):
        import torchtitan.tools.utils as tools_utils

        self.parallel_dims.device_type = tools_utils.device_type = step.device
        if step.device == "cpu":
            dispatcher = self.token_dispatcher.AllToAllTokenDispatcher
            exchange = self.token_dispatcher.all_to_all_single
            dispatcher._token_count_exchange = lambda self, counts, group, size: exchange(
                counts.view(size, -1), None, None, group=self.ep_mesh)
            dispatcher._dispatch_token_exchange = lambda self, rows, group, output, sent: exchange(
                rows, output, sent, self.ep_mesh)
            dispatcher._combine_token_exchange = lambda self, rows, group, sent, output: exchange(
                rows, sent, output, self.ep_mesh)
        if step.dtype != torch.bfloat16:
            torch.Tensor.bfloat16 = lambda tensor: tensor
            self.moe.GroupedExperts._grouped_mm = _looped_grouped_mm

    def _layer(self, model, step):
        groups = model.get("expert_groups", 1)
        config = self.config.make_moe_config(
            num_experts=model["experts"], load_balance_coeff=1e-3 if model.get("expert_bias") else None,
            router=self.config.make_router_config(
                dim=model["d_model"], num_experts=model["experts"], gate_param_init={}, top_k=model["top_k"],
                score_func=model.get("score_function", "softmax"), route_norm=model.get("route_norm", False),
                route_scale=model.get("route_scale", 1.0), num_expert_groups=groups if groups > 1 else None,
                num_limited_groups=model.get("limited_groups", 1) if groups > 1 else None,
                bias=model.get("gate_bias", False)),
            routed_experts=self.config.make_routed_experts_config(
                dim=model["d_model"], hidden_dim=model["d_expert"], num_experts=model["experts"], top_k=model["top_k"],
                param_init={}, comm_backend="standard"),
            shared_experts=self.config.make_ffn_config(
                dim=model["d_model"], hidden_dim=model["d_shared"], w1_param_init={}, w2w3_param_init={})
            if model.get("d_shared") else None)
        shard = self.spmd.S
        self.moe_sharding.set_moe_sharding_config(
            config, enable_ep=step.layout.ep > 1, enable_sp=step.layout.sp,
            expert_param_layout={"w1_EFD": shard(1), "w2_EDF": shard(2), "w3_EFD": shard(1)})
        torch.set_default_dtype(step.dtype)  # for the parameters; buffers are float32 whatever it is
        try:
            return config.build().to(step.device)
        finally:
            torch.set_default_dtype(torch.float32)

    def _input(self, x, dims, layout):
        """x as the layer before would hand it over."""
        if dims.spmd_backend != "full_dtensor":
            return x
        mesh = dims.get_activated_mesh(["dp_replicate", "dp_shard", "cp", "tp"])
        from torch.distributed.tensor import DTensor, Replicate, Shard

        # Axes of size 1 that torchtitan keeps in the mesh are replicated (full_dtensor.parallelize_inputs).
        sharded = {"dp_replicate": Shard(0), "dp_shard": Shard(0), "cp": Shard(1)}
        if layout.sp:
            sharded["tp"] = Shard(1)
        return DTensor.from_local(x, mesh, [sharded.get(name, Replicate()) if layout.size(name) > 1 else Replicate()
                                            for name in mesh.mesh_dim_names])

    def _shard(self, root, dims, dtype):
        """What torchtitan's own models do (models/qwen3/parallelize.py)."""
        if dims.spmd_backend == "partial_dtensor":
            replicate = ["dp_replicate"] if dims.dp_replicate_enabled else []
            meshes = {"dp_mesh": dims.get_mesh([*replicate, "fsdp"])}
            if dims.ep_enabled:
                meshes["edp_mesh"] = dims.get_optional_mesh([*replicate, "efsdp"])
        else:
            dense, sparse = self.full_dtensor.resolve_fsdp_mesh(dims), self.full_dtensor.resolve_sparse_fsdp_mesh(dims)
            meshes = {"dp_mesh": dense[0], "dp_mesh_dims": dense[1], "edp_mesh": sparse[0], "edp_mesh_dims": sparse[1]}
        self.fsdp.apply_fsdp_to_decoder(root, param_dtype=dtype, reduce_dtype=dtype, pp_enabled=False,
                                        ep_degree=dims.ep, **meshes)

    def _claims(self, backend, layout):
        """What a gradient is without FSDP, where no DTensor says it, or says it only for FSDP to make it true.

        Every data-parallel rank holds its own share, whatever the label on the data-parallel axes is. Under
        spmd_types parameters are plain tensors, and one that is typed R on tp has a gradient typed P
        (MOE_SHARDING.md), which FSDP sums.
        """
        owed = {"dp_replicate": "P", "dp_shard": "P", "cp": "P"}
        # By name, because that stands above a DTensor's label.
        claims = {"dense": owed, "w1_EFD": {"edp": "P"}, "w2_EDF": {"edp": "P"}, "w3_EFD": {"edp": "P"}}
        if backend == "spmd_types":
            claims["gate_ED"] = claims["gate_bias_E"] = {"tp": "P"}
            claims["shared_w1_FD"] = claims["shared_w3_FD"] = {"tp": "S(0)"}
            claims["shared_w2_DF"] = {"tp": "S(1)"}
            experts = {"edp": "P", "ep": "S(0)"}
            claims["w1_EFD"] = claims["w3_EFD"] = {**experts, "etp": "S(1)"}
            claims["w2_EDF"] = {**experts, "etp": "S(2)"}
        return claims

    def _casts(self, step):
        """The gate runs under autocast to float32, which leaves float64 as it is on every device and is not there on a
        CPU; its scores stay in the dtype of the logits. Experts' outputs are float32 when they meet the scores."""
        if step.dtype == torch.float64:
            return {"routed_out_ND": "float32"}
        coarse = step.dtype == torch.bfloat16 and step.device == "cpu"
        return {"scores_TE": "bfloat16" if coarse else "float32"}


def _backward(y, d_y):
    from torch.distributed.tensor import DTensor

    y.backward(DTensor.from_local(d_y, y.device_mesh, y.placements) if isinstance(y, DTensor) else d_y)


def _own_choices(chosen, x, layout, rank):
    """The experts chosen for this rank's rows; None where it sees only a part of them."""
    chosen, length = local_value(chosen), x.shape[1]
    if chosen.shape[1] == length:
        return chosen
    if chosen.shape[1] == length * layout.tp:  # the router ran on the tokens of all tp ranks
        at = layout.coordinate(rank, "tp") * length
        return chosen[:, at:at + length]
    return None


def _looped_grouped_mm(self, *, A, B_t, offs):
    start, products = 0, []
    for expert, end in enumerate(offs.tolist()):
        products.append(A[start:end] @ B_t[expert])
        start = end
    return torch.cat(products)
