"""Writes what the ranks of one step hold as a dump for `moegate check`."""

import atexit
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from .errors import DumpError
from .layout import Layout
from .names import BUFFERS, PARAMETERS, Holds, NameMap, find
from .placement import claims_of, full_value, local_value, parse, shard_of, with_dim
from .problem import Problem, mesh_of, parameters_of, shape_of

_DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass
class _Held:
    """One tensor as this rank holds it."""

    value: torch.Tensor
    claims: dict[str, str]
    scale: float = 1.0


@dataclass
class _RankDump:
    held: dict[str, _Held] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # tensor -> why


def capture(folder, *, layout: Layout, x: torch.Tensor, d_y: torch.Tensor, y: torch.Tensor, names: NameMap,
            module: torch.nn.Module | None = None, parameters: dict[str, torch.Tensor] | None = None,
            problem: Problem | None = None, model: dict | None = None, tokens: list[int] | None = None,
            gradient=lambda parameter: parameter.grad, d_x: torch.Tensor | None = None,
            topk_expert: torch.Tensor | None = None, claims: dict[str, dict[str, str]] | None = None,
            axes: dict[str, tuple[str, ...]] | None = None, full: bool = False, scale: dict[str, float] | None = None,
            casts: dict[str, str] | None = None, ignore: tuple[str, ...] = (), not_dumped: tuple[str, ...] = (),
            producer: str = "capture", versions: dict[str, str] | None = None, group=None) -> Path:
    """Every rank calls this after its backward pass; the folder is there, whole, when it returns.

    layout       how the ranks are arranged; the world must be the process group's
    x, d_y, y    this rank's input, cotangent and output, [tokens, D] or with more dimensions before D
    d_x          the input's gradient; by default x.grad
    module       whose named_parameters() are read, or give `parameters`, {name: parameter}
    names        which parameter is which tensor: names.TORCHTITAN, HUGGING_FACE, MEGATRON, or a dict of one's own
    problem      load_inputs(...), where the step ran one of moegate's problems; else give `model`, the manifest's
                 "model", and the local inputs and weights are dumped too
    tokens       global indices of this rank's rows; by default layout.tokens(T, rank)
    gradient     reads a parameter's gradient (Megatron's is parameter.main_grad)
    topk_expert  [tokens, K], the chosen experts of this rank's rows; lets routing be compared
    claims       what is known and no DTensor says: {"gate_ED": {"tp": "P"}}, by the parameter's name, "x_TD" or
                 "y_TD"; "dense" and "expert" stand for all parameters of a mesh: {"dense": {"dp_shard": "P"}} where
                 nothing was reduced over dp_shard. An axis that neither this nor a DTensor mentions is "R". Stands
                 above what a DTensor says, except for "dense" and "expert", which stand below
    axes         mesh dimensions with names of one's own: {"data": ("dp_shard",)}
    full         take full_tensor() of every DTensor gradient and claim "R": what each rank would hand an optimizer
    scale        a factor that the gradients still lack, by parameter or "dense" and "expert": averaged over 4, 4.0
    casts        what is computed in a coarser dtype: {"scores_TE": "float32"}; also logits_TE, routed_in_ND,
                 routed_out_ND, and tensors of the dump that are stored so
    ignore       parameters that are none of the problem's, as in `names`
    not_dumped   gradients left out on purpose, such as "d_shared_gate_D"
    group        the process group to agree through; by default the default group; None without one is a world of 1

    A gradient that is None is reported as missing, never as zero. Throws DumpError on every rank where anything is
    wrong on one: then no folder is there. Values go to files and through no collective.
    """
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)
    into = DumpFolder(folder, problem)
    agree = _Agreement(rank, world, group)

    def check():
        if world != layout.world:
            raise DumpError(f"the layout has {layout.world} ranks, the process group {world}")
        if (problem is None) == (model is None):
            raise DumpError("give either problem or model")
        if (module is None) == (parameters is None):
            raise DumpError("give either module or parameters")

    agree.on(check)
    if world > 1:
        atexit.unregister(_let_gloo_finish)  # where this is not the first dump
        atexit.register(_let_gloo_finish)
    named = dict(parameters or {}) if module is None else dict(module.named_parameters())
    ignored = dict.fromkeys(ignore, Holds())
    gradients = _read(agree, "gradient", full=full, read=lambda: {
        name: gradient(parameter) for name, parameter in named.items()
        if parameter.requires_grad and not find(ignored, name) and not _is_left_out(find(names, name), not_dumped)})
    buffers = {} if module is None else dict(module.named_buffers())
    weights = _read(agree, "weight", full=full, read=lambda: {
        name: value for name, value in {**named, **buffers}.items() if problem is None and find(names, name)})
    dump, described = agree.on(both=True, action=lambda: read_rank(
        rank, layout=layout, x=x, d_y=d_y, y=y, d_x=x.grad if d_x is None else d_x, names=names, gradients=gradients,
        weights=weights, problem=problem, model=model, tokens=tokens, topk_expert=topk_expert, claims=claims, axes=axes,
        scale=scale, casts=casts, not_dumped=not_dumped, producer=producer,
        versions={"torch": torch.__version__.split("+")[0], **(versions or {})}))
    manifest = agree.on(lambda: merged(described) if rank == 0 else None)[0]
    agree.on(lambda: into.make_room() if rank == 0 else None)
    try:
        agree.on(lambda: into.write_rank(rank, dump, manifest))
        agree.on(lambda: into.finish(manifest) if rank == 0 else None)
    except DumpError:  # all ranks are here, so none writes any more
        if rank == 0:
            into.remove()
        raise
    return into.folder


def read_rank(rank, *, layout, x, d_y, y, d_x, names, gradients, weights, problem, model, tokens, claims, scale, casts,
              producer, versions, topk_expert=None, axes=None, not_dumped=()):
    """One rank's (tensors, description) for merged and DumpFolder. Needs no other rank.

    `gradients` and `weights` are by the framework's names, a gradient that is missing None; weights, with buffers among
    them, are needed where there is no problem. All else is as for capture.
    """
    sizes = problem.model if problem else model
    rows = layout.tokens(sizes["tokens"], rank) if tokens is None else [int(token) for token in tokens]
    dump = _RankDump()
    reader = _Reader(layout, rank, sizes, names, claims or {}, axes, scale or {})
    reader.read_rows(dump, rows, y=y, d_x=d_x, topk_expert=topk_expert)
    reader.read_gradients(dump, gradients, not_dumped)
    if problem is None:
        reader.read_inputs(dump, rows, x, d_y, weights)
    manifest = {
        "schema": 1, "producer": producer, "versions": versions,
        "mesh": layout.mesh_json(), "layout": layout.json(), "model": sizes,
        "dtype": _DTYPES[y.dtype], "loss": {"kind": "dot_with_cotangent", "reduction": "sum"},
    }
    if casts:
        manifest["casts"] = casts
    if problem is not None:
        manifest.update({"case": problem.case, "inputs": "inputs.safetensors"})
    if not_dumped:
        manifest["not_dumped"] = list(not_dumped)
    return dump, {"manifest": manifest, "tokens": rows, "missing": dump.missing,
                  "tensors": {name: _described(name, one, sizes) for name, one in dump.held.items()}}


class DumpFolder:
    """Writes a dump beside its place and puts it there when it is whole."""

    def __init__(self, folder, problem: Problem | None):
        self.folder, self.problem = Path(folder), problem
        self.temporary = self.folder.with_name(self.folder.name + ".partial")

    def make_room(self) -> None:
        if self.folder.exists():
            raise DumpError(f"{self.folder} is there already; give another folder, or remove it")
        shutil.rmtree(self.temporary, ignore_errors=True)  # of a run that did not end
        self.temporary.mkdir(parents=True)

    def write_rank(self, rank: int, dump: _RankDump, manifest: dict) -> None:
        held = {name: one.value.cpu().clone(memory_format=torch.contiguous_format)  # save_file refuses shared memory
                for name, one in dump.held.items() if name in manifest["tensors"]}
        save_file(held, str(self.temporary / f"rank-{rank:05}.safetensors"),
                  metadata={"rank": str(rank), "world": str(len(manifest["tokens"])), **manifest["versions"]})

    def finish(self, manifest: dict) -> None:
        if self.problem is not None:
            shutil.copyfile(self.problem.folder / "inputs.safetensors", self.temporary / "inputs.safetensors")
        (self.temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        self.temporary.rename(self.folder)

    def remove(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)


class _Reader:
    """Turns a framework's tensors into moegate's, on this rank."""

    def __init__(self, layout, rank, model, names, claims, axes, scale):
        self.layout, self.rank, self.model, self.names = layout, rank, model, names
        self.claims, self.axes, self.scale = claims, axes, scale
        known = {"dense", "expert", "x_TD", "y_TD", *PARAMETERS}
        for name in [*claims, *scale]:
            if name not in known:
                raise DumpError(f'claims or scale for "{name}", which is none of {", ".join(sorted(known))}')
        for name, of_tensor in claims.items():
            for axis, claim in of_tensor.items():
                parse(claim)
                mesh = name if name in ("dense", "expert") else mesh_of(name)
                if axis not in layout.axes(mesh):
                    raise DumpError(f'claims: "{axis}" is not an axis of the {mesh} mesh, on which {name} is; use '
                                    f"{', '.join(layout.axes(mesh))}")

    def read_rows(self, dump, rows, *, y, d_x, topk_expert):
        dump.held["y_TD"] = self._rows("y_TD", y, rows, self.claims.get("y_TD"))
        if d_x is None:
            dump.missing["d_x_TD"] = f"x.grad is None on rank {self.rank}"
        else:
            dump.held["d_x_TD"] = self._rows("d_x_TD", d_x, rows, self.claims.get("x_TD"))
        if topk_expert is not None:
            dump.held["topk_expert_TK"] = self._rows("topk_expert_TK", topk_expert, rows, None)
            dump.held["topk_expert_TK"].value = dump.held["topk_expert_TK"].value.to(torch.int64)

    def _rows(self, name, value, rows, claims):
        width = shape_of(name, self.model)[1]
        value = local_value(value)
        if value.shape[-1] != width or value.numel() != width * len(rows):
            raise DumpError(f"{name} has the local shape {list(value.shape)}; {len(rows)} tokens of {width} are "
                            f"{[len(rows), width]}")
        default = {"dp_replicate": "S(0)", "dp_shard": "S(0)", "cp": "S(0)", "tp": "S(0)" if self.layout.sp else "R"}
        return self._held(name, value.reshape(len(rows), width), {**default, **(claims or {})})

    def _held(self, name, value, claims, scale=1.0):
        axes = self.layout.axes(mesh_of(name))
        return _Held(value, {axis: claims[axis] for axis in axes
                             if claims.get(axis, "R") != "R" and self.layout.size(axis) > 1}, scale)

    def read_gradients(self, dump, gradients, not_dumped):
        pieces, missing = {}, {}
        for name, value in gradients.items():
            named = self._named(name)
            for tensor in named.holds.tensors:
                # An expert bias chooses and is not learned by gradients, be it a buffer or a parameter.
                if tensor in BUFFERS or f"d_{tensor}" in not_dumped:
                    continue
                if value is None:
                    missing.setdefault(tensor, []).append(name)
                else:
                    pieces.setdefault(tensor, []).append(self._piece(named, tensor, name, value))
        for tensor in parameters_of(self.model):
            if tensor in missing:
                others = len(missing[tensor]) - 1
                what = missing[tensor][0] + (f" and {others} more" if others else "")
                dump.missing[f"d_{tensor}"] = f"the gradient of {what} is None on rank {self.rank}"
            elif tensor in pieces:
                dump.held[f"d_{tensor}"] = self._joined(tensor, pieces[tensor], self.scale)
            elif f"d_{tensor}" not in not_dumped:
                dump.missing[f"d_{tensor}"] = f"no parameter is mapped to {tensor} on rank {self.rank}"

    def read_inputs(self, dump, rows, x, d_y, weights):
        dump.held["x_TD"] = self._rows("x_TD", x, rows, None)
        dump.held["d_y_TD"] = self._rows("d_y_TD", d_y, rows, None)
        pieces = {}
        for name, value in weights.items():
            named = find(self.names, name)
            for tensor in named.holds.tensors if named else ():
                if tensor not in BUFFERS or self.model.get("expert_bias"):
                    pieces.setdefault(tensor, []).append(self._piece(named, tensor, name, value, is_value=True))
        for tensor, of_tensor in pieces.items():
            dump.held[tensor] = self._joined(tensor, of_tensor, {})

    def _named(self, name):
        named = find(self.names, name)
        if named is None:
            raise DumpError(f"parameter {name} is in no line of the name map; add it, or pass it in ignore")
        for tensor in named.holds.tensors:
            if tensor not in (*parameters_of(self.model), *BUFFERS):
                raise DumpError(f"parameter {name} is {tensor}, which the model lacks; is gate_bias, d_shared or "
                                "shared_gate missing in it?")
        return named

    def _piece(self, named, tensor, name, value, is_value=False):
        """(expert number or None, local value, claims, scale) of one parameter's part of `tensor`."""
        mesh = mesh_of(tensor)
        own, scale = {}, 1.0
        if isinstance(value, DTensor):
            own, scale = claims_of(value, name, mesh, self.layout, self.rank, self.axes)
        value, own = _unfused(local_value(value), own, tensor, named.holds, name)
        if named.expert is not None:
            own = {axis: with_dim(claim, lambda dim: dim + 1) for axis, claim in own.items()}
        dims = len(shape_of(tensor, self.model)) - (named.expert is not None)
        while value.dim() > dims and value.shape[0] == 1:  # a gate of one output is [1, D] in some frameworks
            value, own = value.squeeze(0), {axis: with_dim(claim, lambda dim: dim - 1) for axis, claim in own.items()}
        claims = {**self.claims.get(mesh, {}), **own, **self.claims.get(tensor, {})}
        if is_value:  # a weight is never owed
            claims = {axis: claim for axis, claim in claims.items() if claim != "P"}
        return named.expert, value, claims, scale

    def _joined(self, tensor, pieces, scale):
        experts = [expert for expert, *_ in pieces]
        claims, own_scale = pieces[0][2], pieces[0][3]
        if any(other[2:] != pieces[0][2:] for other in pieces):
            raise DumpError(f"{tensor}: its parts have different placements, {claims} and others")
        if experts == [None]:
            value = pieces[0][1]
        elif None in experts or len(set(experts)) != len(experts):
            raise DumpError(f"{tensor}: {len(pieces)} parameters are mapped to it; use {{e}} for the expert's number")
        else:
            value = torch.stack([piece[1] for piece in sorted(pieces, key=lambda piece: piece[0])])
        whole = torch.empty(shape_of(tensor, self.model), device="meta")
        share = shard_of(whole, claims, self.layout, self.rank, mesh_of(tensor))
        if value.shape != share.shape:
            raise DumpError(f"{tensor} has the local shape {list(value.shape)}, and {claims or 'what is whole'} of "
                            f"{list(whole.shape)} is {list(share.shape)}")
        return self._held(f"d_{tensor}", value, claims,
                          own_scale * scale.get(tensor, scale.get(mesh_of(tensor), 1.0)))


def _unfused(value, claims, tensor, holds: Holds, name):
    """The part of a fused or transposed parameter that is `tensor`."""
    if holds.transposed:
        last = value.dim() - 1
        value = value.transpose(-1, -2)
        claims = {axis: with_dim(claim, lambda dim: {last: last - 1, last - 1: last}.get(dim, dim))
                  for axis, claim in claims.items()}
    parts = len(holds.tensors)
    if parts == 1:
        return value, claims
    at, rows = holds.tensors.index(tensor), value.shape[-2]
    if rows % parts != 0:
        raise DumpError(f"{name} has {rows} rows here, which are not {parts} equal parts")
    if holds.interleaved:
        return value[..., at::parts, :], claims
    for axis, claim in claims.items():
        if parse(claim)[0] in ("S", "SS") and parse(claim)[1] == value.dim() - 2:
            raise DumpError(f"{name} holds {' and '.join(holds.tensors)} and is sharded through both over {axis}; pass "
                            "full=True")
    return value.unflatten(-2, (parts, rows // parts)).select(-3, at), claims


def _described(name, held: _Held, model) -> dict:
    described: dict[str, object] = {"shape": shape_of(name, model), "mesh": mesh_of(name), "placements": held.claims}
    if held.scale != 1.0:
        described["scale"] = held.scale
    return described


def merged(ranks: list[dict]) -> dict:
    """One manifest of what all ranks said. Throws DumpError where they do not agree."""
    manifest = ranks[0]["manifest"]
    for rank, said in enumerate(ranks):
        for key, value in said["manifest"].items():
            if value != manifest.get(key):
                raise DumpError(f"ranks 0 and {rank} do not agree on {key}: {manifest.get(key)} and {value}")
    reasons = {}
    for said in ranks:
        for tensor, why in said["missing"].items():
            reasons.setdefault(tensor, []).append(why)
    tensors = {}
    for rank, said in enumerate(ranks):
        for name, described in said["tensors"].items():
            if name in reasons:
                continue
            if tensors.setdefault(name, described) != described or name not in ranks[0]["tensors"]:
                raise DumpError(f"ranks 0 and {rank} do not agree on {name}: {ranks[0]['tensors'].get(name)} and "
                                f"{described}")
    for name in tensors:
        for rank, said in enumerate(ranks):
            if name not in said["tensors"]:
                raise DumpError(f"rank {rank} has no {name}, other ranks have")
    manifest = {**manifest, "tensors": tensors, "tokens": [said["tokens"] for said in ranks]}
    if reasons:
        manifest["missing"] = {tensor: _sentence(why) for tensor, why in sorted(reasons.items())}
    return manifest


def _sentence(reasons: list[str]) -> str:
    """ "... on rank 0", "... on rank 2" -> "... on ranks 0, 2"; the first reason stands for all."""
    what = reasons[0].rsplit(" on rank ", 1)[0]
    ranks = [reason.rsplit(" on rank ", 1)[1] for reason in reasons]
    return f"{what} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"


def _let_gloo_finish():
    """A thread of Gloo lets go of the last exchange's tensors a moment after everyone has them, and needs the
    interpreter for it. Were that on its way out, PyTorch would abort the process (pytorch/pytorch#179291).
    """
    time.sleep(0.2)


def _is_left_out(named, not_dumped):
    return named is not None and all(f"d_{tensor}" in not_dumped for tensor in named.holds.tensors)


def _read(agree, what, read, full):
    """What read() returns, {name: tensor}; with `full` every DTensor whole.

    Gathering one is a collective of its mesh, which would wait for good where a rank has none to give. So ranks tell
    each other first what they would gather, and do so in one order.
    """
    def look():
        values = read()
        return values, {name: agree.ranks_of(value.device_mesh) for name, value in values.items()
                        if full and isinstance(value, DTensor)}

    values, gathered = agree.on(look, both=True)
    for rank, of_rank in enumerate(gathered):
        for name, ranks in of_rank.items():
            without = [other for other in ranks if gathered[other].get(name) != ranks]
            if without:
                raise DumpError(f"the {what} of {name} is a DTensor over ranks {ranks} on rank {rank}, and none such "
                                f"on rank {without[0]}")
    return agree.on(both=True, action=lambda: (
        {**values, **{name: full_value(values[name]) for name in sorted(gathered[agree.rank])}}, None))[0]


class _Agreement:
    """Runs something on every rank; where it fails on one, it fails on all, with that rank's words."""

    def __init__(self, rank, world, group):
        self.rank, self.world, self.group = rank, world, group

    def ranks_of(self, mesh):
        """A mesh's ranks as the group numbers them."""
        ranks = mesh.mesh.flatten().tolist()
        members = dist.get_process_group_ranks(self.group or dist.group.WORLD)
        if not set(ranks) <= set(members):
            raise DumpError(f"a mesh has the ranks {ranks}, of which the group has {members} alone")
        return [members.index(rank) for rank in ranks]

    def on(self, action, both=False):
        """What action() returned on every rank; with `both` (own, shared) results, where only shared ones travel."""
        own: object = None
        said: dict[str, object] = {"result": None}
        cause: Exception | None = None
        try:
            result = action()
            own, said["result"] = result if both else (None, result)
        except (DumpError, OSError) as error:
            said["error"], cause = str(error), error
        except Exception as error:  # noqa: BLE001  of a caller's `gradient`, say; the others must not wait for this rank
            said["error"], cause = f"{type(error).__name__}: {error}", error
        answers = [said] * self.world
        if self.world > 1:
            dist.all_gather_object(answers, said, group=self.group)
        for rank, answer in enumerate(answers):
            if "error" in answer:
                why = str(answer["error"])
                where = f"rank {rank}: " if self.world > 1 and "ranks 0 and" not in why else ""
                raise DumpError(where + why) from cause
        results = [answer["result"] for answer in answers]
        return (own, results) if both else results
