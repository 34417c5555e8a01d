"""Megatron-core's MoELayer as a producer of dumps. Nothing of its arithmetic or collectives is replaced.

What a CPU forces, all of it in megatron_on_cpu.py, is not done on CUDA. The dump repairs nothing: after
finalize_model_grads every gradient is finished ("R") or sharded, averaged over dp * cp or (per_token_loss=on) over all
tokens, which `scale` says.
"""

import dataclasses

import torch
import torch.distributed as dist
from moegate_dump import MEGATRON, MEGATRON_SHARDS, Skip, capture, load_inputs
from moegate_dump.ranks import Step, installed_release


class MegatronCore:
    name = "megatron-core"
    options = {"dispatcher": ("alltoall", "allgather"), "per_token_loss": ("off", "on"), "device": ("cpu", "cuda")}

    def load(self, release: str) -> None:
        self.release = installed_release("megatron-core", release)
        # Its fused functions run as they are written: to compile them takes every start seconds, and a compiler.
        torch.compile = lambda function=None, **options: function or (lambda later: later)
        import megatron.core.models.gpt.moe_module_specs as specs
        from megatron.core import distributed, parallel_state
        from megatron.core.transformer import transformer_config

        self.distributed, self.specs = distributed, specs
        self.parallel_state, self.transformer_config = parallel_state, transformer_config

    def check(self, step: Step) -> None:
        model, layout, me = load_inputs(step.problem).model, step.layout, f"megatron-core {self.release}"
        sigmoid = model.get("score_function", "softmax") == "sigmoid"
        if model.get("gate_bias"):
            raise Skip(f"{me} has a gate bias only together with biases everywhere")
        if layout.tp > 1 and not layout.sp:
            raise Skip(f"{me} refuses to train an MoE layer with tp and without sequence parallelism")
        if sigmoid and model["top_k"] > 1 and not model.get("route_norm"):
            raise Skip(f"{me} normalises sigmoid scores where top_k is over 1")
        if model["top_k"] == 1 and model.get("route_norm"):
            raise Skip(f"{me} does not normalise scores where top_k is 1")
        if model.get("score_placement", "after_experts") == "before_experts" and model["top_k"] > 1:
            raise Skip(f"{me} applies scores before the experts only where top_k is 1")
        if model.get("expert_bias") and not sigmoid:
            raise Skip(f"{me} has an expert bias only with sigmoid scores")
        if _limits_groups(model) and model["top_k"] // model.get("limited_groups", 1) != 2:
            raise Skip(f"{me} ranks groups by their top_k / limited_groups best experts, which are not 2 here")
        if _limits_groups(model) and not sigmoid and model.get("route_norm"):
            raise Skip(f"{me} ranks groups by logits where it normalises softmax scores")

    def run(self, step: Step) -> None:
        if step.device == "cpu":
            from megatron_on_cpu import adapt

            adapt()
        rank, layout, problem = dist.get_rank(), step.layout, load_inputs(step.problem)
        model = problem.model
        self.parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tp, context_parallel_size=layout.cp, expert_model_parallel_size=layout.ep,
            expert_tensor_parallel_size=layout.etp)
        config = self._config(model, step)
        spec = self.specs.get_moe_module_spec(use_te=False, num_experts=model["experts"], moe_grouped_gemm=False)
        layer = spec(config=config, layer_number=1).to(step.device)
        problem.fill(layer, MEGATRON, layout=layout, rank=rank, claims=MEGATRON_SHARDS)
        wrapped = self.distributed.DistributedDataParallel(
            config, self.distributed.DistributedDataParallelConfig(grad_reduce_in_fp32=False), layer)
        wrapped.train()
        wrapped.zero_grad_buffer()

        tokens = layout.tokens_side_by_side(model["tokens"], rank)

        def rows(name):
            value = problem.rows(name, tokens).to(step.device, step.dtype)
            return value.view(-1, layout.local_batch, model["d_model"])

        chosen = []
        layer.router.register_forward_hook(lambda module, inputs, outputs: chosen.append(outputs[1]))
        x, d_y = rows("x_TD").requires_grad_(), rows("d_y_TD")
        y, _ = wrapped(x)
        (y * d_y).sum().backward()
        scale = self._finish_gradients(wrapped, model["tokens"], step)

        topk = chosen[0].nonzero()[:, 1].view(-1, model["top_k"])
        capture(step.out, layout=layout, x=x, d_y=d_y, y=y, module=layer, names=MEGATRON, problem=problem,
                tokens=tokens, gradient=lambda parameter: parameter.main_grad, topk_expert=topk, claims=MEGATRON_SHARDS,
                scale={"dense": scale, "expert": scale}, casts={"scores_TE": "float32"},
                producer=f"megatron-core {self.release}, MoELayer, {step.options['dispatcher']} dispatcher",
                versions={"megatron-core": self.release})

    def _finish_gradients(self, wrapped, tokens, step) -> float:
        """What the gradients must then be multiplied by: Megatron averages over dp * cp or over all tokens."""
        ranks = step.layout.dp_replicate * step.layout.dp_shard * step.layout.cp
        if step.options["per_token_loss"] == "off":
            self.distributed.finalize_model_grads([wrapped])
            return ranks
        # Counted before sequence parallelism splits them.
        self.distributed.finalize_model_grads([wrapped], torch.tensor(tokens // ranks, device=step.device))
        return 1.0 / (1.0 / torch.tensor(tokens)).item()  # it multiplies by the reciprocal, a float32

    def _config(self, model, step):
        layout = step.layout
        softmax = model.get("score_function", "softmax") == "softmax"
        settings = {
            "num_layers": 1, "hidden_size": model["d_model"], "num_attention_heads": layout.tp,
            "ffn_hidden_size": model["d_expert"], "moe_ffn_hidden_size": model["d_expert"],
            "num_moe_experts": model["experts"],
            "moe_router_topk": model["top_k"], "moe_router_score_function": "softmax" if softmax else "sigmoid",
            # After top-k, Megatron's softmax is softmax over all experts and then normalised.
            "moe_router_pre_softmax": softmax and not model.get("route_norm", False),
            "moe_router_topk_scaling_factor": model.get("route_scale", 1.0),
            "moe_router_num_groups": model["expert_groups"] if _limits_groups(model) else None,
            "moe_router_group_topk": model.get("limited_groups", 1) if _limits_groups(model) else None,
            "moe_router_enable_expert_bias": model.get("expert_bias", False),
            "moe_router_load_balancing_type": "none", "moe_aux_loss_coeff": 0.0,
            # In bfloat16 Megatron would otherwise round logits and scores to it, which no router should.
            "moe_router_dtype": "fp64" if step.dtype == torch.float64 else "fp32",
            "moe_token_dispatcher_type": step.options["dispatcher"],
            "moe_apply_probs_on_input": model.get("score_placement", "after_experts") == "before_experts",
            "moe_shared_expert_intermediate_size": model.get("d_shared") or None,
            "moe_shared_expert_gate": model.get("shared_gate", False),
            "gated_linear_unit": True, "activation_func": torch.nn.functional.silu, "add_bias_linear": False,
            "calculate_per_token_loss": step.options["per_token_loss"] == "on",
            "params_dtype": step.dtype, "bf16": step.dtype == torch.bfloat16, "use_cpu_initialization": True,
            "perform_initialization": False, "sequence_parallel": layout.tp > 1,
            "tensor_model_parallel_size": layout.tp, "context_parallel_size": layout.cp,
            "expert_model_parallel_size": layout.ep, "expert_tensor_parallel_size": layout.etp,
        }
        known = {field.name for field in dataclasses.fields(self.transformer_config.TransformerConfig)}
        return self.transformer_config.TransformerConfig(
            **{name: value for name, value in settings.items() if name in known})


def _limits_groups(model):
    """Whether a token may not choose from all groups of experts."""
    return model.get("limited_groups", 1) < model.get("expert_groups", 1)
