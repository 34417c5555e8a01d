"""Placements as claims: what a tensor says of itself, read off a DTensor, and what they make of a whole tensor.

A claim is a string of the manifest: "R", "P", "S(d)" or "SS(d,k)". Nothing here repairs anything: values are taken as
they are on this rank, and the claim says what they are supposed to be.
"""

import re

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from .errors import DumpError
from .layout import Layout

# Mesh dimensions of PyTorch programs and the axes they run over. A size-1 axis may be among them.
DENSE_MESH = {"dp_replicate": ("dp_replicate",), "dp_shard": ("dp_shard",), "cp": ("cp",), "tp": ("tp",),
              "dp": ("dp_replicate", "dp_shard"), "batch": ("dp_replicate", "dp_shard"),
              "fsdp": ("dp_shard", "cp"), "dp_shard_cp": ("dp_shard", "cp"),
              "dp_cp": ("dp_replicate", "dp_shard", "cp"), "loss": ("dp_replicate", "dp_shard", "cp")}
EXPERT_MESH = {"edp": ("edp",), "ep": ("ep",), "etp": ("etp",), "efsdp": ("edp",), "tp": ("etp",), "fsdp": ("edp",),
               "dp_shard": ("edp",), "dp_replicate": ("edp",), "dp": ("edp",), "dp_shard_cp": ("edp",)}


def parse(claim: str) -> tuple[str, int, int]:
    """("S", d, 1), ("SS", d, k), ("R", 0, 1) or ("P", 0, 1)."""
    found = re.fullmatch(r"(R|P)|S\((\d+)\)|SS\((\d+),(\d+)\)", claim)
    if not found:
        raise DumpError(f'"{claim}" is not a placement; use R, P, S(dim) or SS(dim,split)')
    if found[1]:
        return found[1], 0, 1
    return ("S", int(found[2]), 1) if found[2] else ("SS", int(found[3]), int(found[4]))


def with_dim(claim: str, change) -> str:
    """The same claim with change(dim) for its dimension."""
    kind, dim, split = parse(claim)
    return {"R": "R", "P": "P", "S": f"S({change(dim)})", "SS": f"SS({change(dim)},{split})"}[kind]


def shard_of(value: torch.Tensor, claims: dict[str, str], layout: Layout, rank: int, mesh: str) -> torch.Tensor:
    """What `rank` holds of a whole tensor, axes applied from the outermost inwards as DTensor does."""
    for axis in layout.axes(mesh):
        kind, dim, split = parse(claims.get(axis, "R"))
        if kind not in ("S", "SS"):
            continue
        at, of = layout.coordinate(rank, axis), layout.size(axis)
        chunks = [torch.chunk(part, of, dim=dim) for part in torch.chunk(value, split, dim=dim)]
        empty = value.narrow(dim, 0, 0)
        value = torch.cat([parts[at] if at < len(parts) else empty for parts in chunks], dim=dim)
    return value


def local_value(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's own values: out of a DTensor, waited for where a collective is still under way."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        if hasattr(tensor, "wait"):  # AsyncCollectiveTensor
            tensor = tensor.wait()
        return tensor.detach()


def full_value(tensor: DTensor) -> torch.Tensor:
    """What this rank sees as the whole tensor; a collective, so all ranks of the mesh must call it."""
    with torch.no_grad():
        return local_value(tensor.full_tensor())


def _text(placement) -> tuple[str, str]:
    """A DTensor placement as a claim; for Partial also how it reduces."""
    if isinstance(placement, Replicate):
        return "R", ""
    if isinstance(placement, Partial):
        return "P", placement.reduce_op
    # A class of its own since torch 2.10, a subclass of Shard before.
    if type(placement).__name__ == "_StridedShard":
        return f"SS({placement.dim},{placement.split_factor})", ""
    if isinstance(placement, Shard):
        return f"S({placement.dim})", ""
    raise DumpError(f"placement {placement} has no counterpart; use Shard, Replicate, Partial or _StridedShard")


def claims_of(tensor: DTensor, name: str, mesh: str, layout: Layout, rank: int,
              axes: dict[str, tuple[str, ...]] | None = None) -> tuple[dict[str, str], float]:
    """What a DTensor says of itself, per axis of the layout, and the factor that its values lack (Partial("avg")).

    Axes that its mesh does not have are left out. Throws DumpError where its mesh is not one of the layout's.
    """
    known = {**(EXPERT_MESH if mesh == "expert" else DENSE_MESH), **(axes or {})}
    device_mesh = tensor.device_mesh
    if device_mesh.mesh_dim_names is None:
        raise DumpError(f"{name}: its mesh has no names; give them to init_device_mesh(..., mesh_dim_names=...)")
    claims, scale = {}, 1.0
    for i, (dim_name, placement) in enumerate(zip(device_mesh.mesh_dim_names, tensor.placements, strict=True)):
        if device_mesh.size(i) == 1:
            continue
        if dim_name not in known:
            raise DumpError(f'{name}: its mesh has the dimension "{dim_name}", which is no axis; say which it is with '
                            f'axes={{"{dim_name}": ("{layout.axes(mesh)[-1]}",)}}')
        along = tuple(axis for axis in known[dim_name] if layout.size(axis) > 1)
        ranks = device_mesh[dim_name].mesh.flatten().tolist()
        if not along or ranks != layout.group(rank, along):
            raise DumpError(f'{name}: its mesh dimension "{dim_name}" is ranks {ranks}, and '
                            f"{' x '.join(known[dim_name])} of this layout ranks "
                            f"{layout.group(rank, along) if along else [rank]}")
        text, reduce_op = _text(placement)
        if text == "P" and reduce_op == "avg":
            scale /= len(ranks)  # the judge adds the local values up
        elif text == "P" and reduce_op != "sum":
            raise DumpError(f'{name}: is Partial("{reduce_op}") over {dim_name}; only sum and avg can be judged')
        if text.startswith("SS") and len(along) > 1:
            raise DumpError(f'{name}: is strided over "{dim_name}", which is {" x ".join(along)}; pass full=True')
        claims.update(dict.fromkeys(along, text))
    return claims, scale
