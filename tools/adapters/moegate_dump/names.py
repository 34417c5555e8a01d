"""Which parameter of a framework is which tensor of moegate.

A name map is a dict from a parameter's name, as `module.named_parameters()` gives it, to what it holds:

    "router.gate.weight": "gate_ED"                             the tensor itself
    "experts.{e}.gate_proj.weight": "w1_EFD"                     one module per expert, e = 0, 1, ...
    "experts.gate_up_proj": Holds("w1_EFD", "w3_EFD")            fused: equal parts along F, w1 first
    "experts.down_proj": Holds("w2_EDF", transposed=True)        the last two dimensions are swapped

A map names the parameters below the MoE layer; a prefix ("layers.0.mlp.") may come before. One's own framework is such
a dict; `{**HUGGING_FACE, "router.weight": "gate_ED"}` changes one line of a map that ships.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import DumpError

# Every tensor that a problem can have (harness/base/tensors.h); its gradient is d_<name>.
PARAMETERS = ("gate_ED", "gate_bias_E", "w1_EFD", "w3_EFD", "w2_EDF", "shared_w1_FD", "shared_w3_FD", "shared_w2_DF",
              "shared_gate_D")
BUFFERS = ("expert_bias_E",)


@dataclass(frozen=True, init=False)
class Holds:
    tensors: tuple[str, ...]  # several: fused along F, in this order
    transposed: bool
    interleaved: bool  # fused row by row (w1, w3, w1, w3, ...), not part by part

    def __init__(self, *tensors: str, transposed: bool = False, interleaved: bool = False):
        for tensor in tensors:
            if tensor not in PARAMETERS + BUFFERS:
                raise DumpError(f'"{tensor}" is not a tensor of a problem; use {", ".join(PARAMETERS + BUFFERS)}')
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "transposed", transposed)
        object.__setattr__(self, "interleaved", interleaved)


NameMap = Mapping[str, str | Holds]

TORCHTITAN: NameMap = {
    "router.gate.weight": "gate_ED",
    "router.gate.bias": "gate_bias_E",
    "expert_bias": "expert_bias_E",
    "expert_bias_E": "expert_bias_E",
    "experts.w1": "w1_EFD",
    "experts.w2": "w2_EDF",
    "experts.w3": "w3_EFD",
    "inner_experts.w1_EFD": "w1_EFD",
    "inner_experts.w2_EDF": "w2_EDF",
    "inner_experts.w3_EFD": "w3_EFD",
    "shared_experts.w1.weight": "shared_w1_FD",
    "shared_experts.w2.weight": "shared_w2_DF",
    "shared_experts.w3.weight": "shared_w3_FD",
}

# Mixtral, Qwen2/3-MoE, DeepSeek: one module per expert up to transformers 4, stacked and fused from 5 on.
HUGGING_FACE: NameMap = {
    "gate.weight": "gate_ED",
    "gate.e_score_correction_bias": "expert_bias_E",
    "experts.{e}.gate_proj.weight": "w1_EFD",
    "experts.{e}.up_proj.weight": "w3_EFD",
    "experts.{e}.down_proj.weight": "w2_EDF",
    "experts.{e}.w1.weight": "w1_EFD",
    "experts.{e}.w3.weight": "w3_EFD",
    "experts.{e}.w2.weight": "w2_EDF",
    "experts.gate_up_proj": Holds("w1_EFD", "w3_EFD"),
    "experts.down_proj": "w2_EDF",
    "shared_expert.gate_proj.weight": "shared_w1_FD",
    "shared_expert.up_proj.weight": "shared_w3_FD",
    "shared_expert.down_proj.weight": "shared_w2_DF",
    "shared_experts.gate_proj.weight": "shared_w1_FD",
    "shared_experts.up_proj.weight": "shared_w3_FD",
    "shared_experts.down_proj.weight": "shared_w2_DF",
    "shared_expert_gate.weight": "shared_gate_D",
}

# Llama 4: stacked like the above, but written for x @ w.
HUGGING_FACE_TRANSPOSED: NameMap = {
    **HUGGING_FACE,
    "router.weight": "gate_ED",
    "experts.gate_up_proj": Holds("w1_EFD", "w3_EFD", transposed=True),
    "experts.down_proj": Holds("w2_EDF", transposed=True),
    "shared_expert.gate_proj.weight": "shared_w1_FD",
}

# Expert numbers are local: expert j of ep rank r is expert r * E_local + j. A fused shard is [w1 shard; w3 shard].
MEGATRON: NameMap = {
    "router.weight": "gate_ED",
    "router.bias": "gate_bias_E",
    "router.expert_bias": "expert_bias_E",
    "experts.local_experts.{e}.linear_fc1.weight": Holds("w1_EFD", "w3_EFD"),
    "experts.local_experts.{e}.linear_fc2.weight": "w2_EDF",
    "experts.linear_fc1.weight{e}": Holds("w1_EFD", "w3_EFD"),
    "experts.linear_fc2.weight{e}": "w2_EDF",
    "shared_experts.linear_fc1.weight": Holds("shared_w1_FD", "shared_w3_FD"),
    "shared_experts.linear_fc2.weight": "shared_w2_DF",
    "shared_experts.gate_weight": "shared_gate_D",
}

# Which part of a tensor a rank of Megatron holds, as claims; the rest of the names is whole on every rank.
MEGATRON_SHARDS = {
    "w1_EFD": {"ep": "S(0)", "etp": "S(1)"}, "w3_EFD": {"ep": "S(0)", "etp": "S(1)"},
    "w2_EDF": {"ep": "S(0)", "etp": "S(2)"}, "shared_w1_FD": {"tp": "S(0)"}, "shared_w3_FD": {"tp": "S(0)"},
    "shared_w2_DF": {"tp": "S(1)"},
}


@dataclass(frozen=True)
class Named:
    """One line of a map that matched a name."""

    holds: Holds
    expert: int | None  # the number that stood for {e}


def find(names: NameMap, parameter: str) -> Named | None:
    """The longest line of the map that `parameter` ends with, at a dot; None when there is none."""
    best: tuple[int, Named] | None = None
    for pattern, holds in names.items():
        regex = r"(?:.*\.)?" + re.escape(pattern).replace(r"\{e\}", r"(\d+)")
        found = re.fullmatch(regex, parameter)
        if found and (best is None or len(pattern) > best[0]):
            expert = int(found[1]) if found.groups() else None
            best = len(pattern), Named(holds if isinstance(holds, Holds) else Holds(holds), expert)
    return best[1] if best else None
