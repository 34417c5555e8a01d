"""The problem of a step: what `moegate inputs CASE --out DIR` wrote, and how it gets into a framework's module."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from .errors import DumpError
from .layout import Layout
from .names import BUFFERS, PARAMETERS, NameMap, find
from .placement import shard_of

_EXPERT_WEIGHTS = ("w1_EFD", "w3_EFD", "w2_EDF")


def mesh_of(tensor: str) -> str:
    """ "expert" for the experts' weights and their gradients, else "dense"."""
    return "expert" if tensor.removeprefix("d_") in _EXPERT_WEIGHTS else "dense"


def shape_of(tensor: str, model: dict) -> list[int]:
    """The global shape, read off the letters at the end of the name (harness/base/model.h)."""
    hidden = model.get("d_shared", 0) if "shared" in tensor else model["d_expert"]
    sizes = {"T": model["tokens"], "D": model["d_model"], "F": hidden, "E": model["experts"], "K": model["top_k"]}
    return [sizes[letter] for letter in tensor.rsplit("_", 1)[1]]


def parameters_of(model: dict) -> list[str]:
    """Those of names.PARAMETERS that the model has; each of them owes a gradient."""
    absent = set()
    if not model.get("gate_bias", False):
        absent.add("gate_bias_E")
    if not model.get("d_shared", 0):
        absent.update(name for name in PARAMETERS if name.startswith("shared"))
    elif not model.get("shared_gate", False):
        absent.add("shared_gate_D")
    return [name for name in PARAMETERS if name not in absent]


@dataclass
class Problem:
    folder: Path
    case: str
    model: dict  # the keys of a manifest's "model"
    dtype: torch.dtype
    tensors: dict[str, torch.Tensor]  # whole: x_TD, d_y_TD, gate_ED, w1_EFD, ...

    def rows(self, tensor: str, tokens: list[int]) -> torch.Tensor:
        """Rows of x_TD or d_y_TD, a copy [len(tokens), D]."""
        return self.tensors[tensor][torch.tensor(tokens, dtype=torch.long)].clone()

    def fill(self, module: torch.nn.Module, names: NameMap, layout: Layout | None = None, rank: int = 0,
             claims: dict[str, dict[str, str]] | None = None) -> None:
        """Copies the problem's weights into `module`.

        A parameter may be whole, a DTensor, or, with `layout` and `rank`, the shard that `claims` says, such as
        {"w1_EFD": {"ep": "S(0)", "etp": "S(1)"}}. Throws DumpError for a parameter that the map lacks, that the problem
        has no value for (an expert bias is 0 then), or of another shape, and for a tensor of the problem that no
        parameter took.
        """
        taken = set()
        held = list(module.named_parameters()) + [(name, buffer) for name, buffer in module.named_buffers()
                                                  if (named := find(names, name)) and named.holds.tensors[0] in BUFFERS]
        local_experts = len({named.expert for name, _ in held if (named := find(names, name))} - {None})
        with torch.no_grad():
            for name, target in held:
                named = find(names, name)
                if named is None:
                    raise DumpError(f"parameter {name} is in no line of the name map")
                if named.holds.tensors[0] in BUFFERS and named.holds.tensors[0] not in self.tensors:
                    target.zero_()  # which chooses as no bias does
                    continue
                pieces = [self._piece(tensor, name, layout, rank, (claims or {}).get(tensor, {}), named.expert,
                                      local_experts) for tensor in named.holds.tensors]
                _assign(target, _joined(pieces, named.holds), name)
                taken.update(named.holds.tensors)
        for tensor in parameters_of(self.model):
            if tensor not in taken:
                raise DumpError(f"no parameter of the module took {tensor}, which the problem has")

    def _piece(self, tensor, parameter, layout, rank, claims, expert, local_experts):
        if tensor not in self.tensors:
            raise DumpError(f"parameter {parameter} is {tensor}, which the problem lacks")
        value = self.tensors[tensor]
        if claims and layout is None:
            raise DumpError(f"{tensor} is claimed to be a shard; fill needs the layout and the rank")
        if claims:
            value = shard_of(value, claims, layout, rank, mesh_of(tensor))
        if expert is None:
            return value
        if value.shape[0] != local_experts:
            raise DumpError(f"the module has {local_experts} experts, its share of {tensor} {value.shape[0]}; claim "
                            '{"ep": "S(0)"} where experts are spread over ep')
        return value[expert]


def _joined(pieces: list[torch.Tensor], holds) -> torch.Tensor:
    if holds.interleaved:
        value = torch.stack(pieces, dim=-2).flatten(-3, -2)
    else:
        value = torch.cat(pieces, dim=-2) if len(pieces) > 1 else pieces[0]
    return value.transpose(-1, -2) if holds.transposed else value


def _assign(target: torch.Tensor, value: torch.Tensor, name: str) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if value.dim() == target.dim() - 1:  # a bias or gate of one output is [1, D] in some frameworks
        value = value.unsqueeze(0)
    if tuple(value.shape) != tuple(target.shape):
        raise DumpError(f"parameter {name} has shape {list(target.shape)}, its value {list(value.shape)}")
    value = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def load_inputs(folder, module: torch.nn.Module | None = None, names: NameMap | None = None, **where) -> Problem:
    """Reads what `moegate inputs CASE --out folder` wrote and, with a module, fills its weights (Problem.fill)."""
    folder = Path(folder)
    try:
        described = json.loads((folder / "problem.json").read_text())
        tensors = load_file(str(folder / described["inputs"]))
        problem = Problem(folder=folder, case=described["case"], model=described["model"],
                          dtype=getattr(torch, described["dtype"]), tensors=tensors)
    except (OSError, ValueError, KeyError) as error:
        raise DumpError(f"{folder} is not what `moegate inputs CASE --out {folder}` writes: {error}") from error
    if module is not None:
        if names is None:
            raise DumpError("load_inputs needs a name map to fill a module, such as moegate_dump.TORCHTITAN")
        problem.fill(module, names, **where)
    return problem
