#!/usr/bin/env python3
"""Turns gradients that ranks of Megatron saved into a dump for `moegate check`. One process, no process group.

    python tools/adapters/megatron_convert.py SAVED --out DUMP && build/moegate check DUMP

SAVED holds sizes.json and one rank-00000.safetensors per rank, numbered as Megatron numbers its ranks. Its python needs
torch and safetensors, not Megatron. A rank's file has what that rank holds, nothing gathered or reduced for it:

    grad:NAME     the gradient of the parameter NAME of one MoE layer: param.main_grad after finalize_model_grads. NAME
                  may have any prefix, as in decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight. Leave one
                  out and it counts as missing, never as zero.
    weight:NAME   the local weight, and mlp.router.expert_bias where there is one; not needed with "problem"
    x, y          the layer's input and output, [S, B, D], S after context and sequence parallelism
    d_y, d_x      the gradients with respect to y and x, [S, B, D]; x and d_y are not needed with "problem"

The loss must be sum(y * d_y): multiply out a loss scale and unset calculate_per_token_loss. sizes.json:

    {"layout": "tp2.ep2.etp1",        as moegate writes layouts; dp2.cp2.tp2.lb4 has 4 sequences on a rank
     "model": {"tokens": 16, "d_model": 4, "d_expert": 4, "experts": 4, "top_k": 2, "d_shared": 4},
                                      as in a manifest: also score_function, route_norm, route_scale, ...
     "producer": "our run 7",         shown with the verdict
     "scale": 2,                      optional: what the gradients must be multiplied by; dp * cp if left out, because
                                      Megatron averages over these, also the experts' gradients
     "tokens": [[0, 1, ...], ...],    optional: for every rank the global numbers of its rows, where the batch is not
                                      spread as Megatron spreads it (a rank's B sequences stand side by side in [S, B])
     "casts": {"scores_TE": "float32"},    optional: what is computed more coarsely; this if left out
     "versions": {"megatron-core": "0.19.2"},   optional
     "problem": "folder"}             optional: what `moegate inputs` wrote and the step ran; stands for the model

Exit status: 0 the dump is there; 2 something given is at fault, and no dump is there.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from moegate_dump import MEGATRON, MEGATRON_SHARDS, DumpError, Layout, load_inputs
from moegate_dump.capture import DumpFolder, merged, read_rank
from moegate_dump.names import BUFFERS, find
from moegate_dump.problem import parameters_of
from safetensors import SafetensorError
from safetensors.torch import load_file

_KEYS: dict[str, type | tuple[type, ...]] = {
    "layout": str, "model": dict, "producer": str, "scale": (int, float), "tokens": list, "casts": dict,
    "versions": dict, "problem": str}
_SIZES = ("tokens", "d_model", "d_expert", "experts", "top_k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("saved", help="the folder with sizes.json and the ranks' files", type=Path)
    parser.add_argument("--out", required=True, help="the dump's folder, which must not be there", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.saved, arguments.out)
    except (DumpError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    print(arguments.out)


def convert(saved: Path, out: Path) -> None:
    sizes = _sizes(saved / "sizes.json")
    layout = Layout.parse(sizes["layout"])
    problem = load_inputs(saved / sizes["problem"]) if "problem" in sizes else None
    if problem and sizes.get("model", problem.model) != problem.model:
        raise DumpError(f'{saved / "sizes.json"}: "model" is not that of the problem, {json.dumps(problem.model)}')
    model = problem.model if problem else sizes["model"]
    tokens = sizes.get("tokens") or [layout.tokens_side_by_side(model["tokens"], rank) for rank in range(layout.world)]
    if len(tokens) != layout.world:
        raise DumpError(f'{saved / "sizes.json"}: "tokens" has {len(tokens)} lists, the layout {layout.world} ranks')
    files = [saved / f"rank-{rank:05}.safetensors" for rank in range(layout.world)]
    for file in files:
        if not file.exists():
            raise DumpError(f"{file} is not there; the layout {sizes['layout']} has {layout.world} ranks")
    others = sorted(set(saved.glob("rank-*")) - set(files))
    if others:
        raise DumpError(f"{others[0]} is there, and the layout {sizes['layout']} has {layout.world} ranks")

    ranks = [_read(file, rank, layout, model, problem, tokens[rank], sizes) for rank, file in enumerate(files)]
    manifest = merged([described for _, described in ranks])
    into = DumpFolder(out, problem)
    into.make_room()
    try:
        for rank, (dump, _) in enumerate(ranks):
            into.write_rank(rank, dump, manifest)
        into.finish(manifest)
    finally:
        into.remove()


def _sizes(file: Path) -> dict:
    if not file.exists():
        raise DumpError(f"{file} is not there; --help says what it has")
    try:
        sizes = json.loads(file.read_text())
    except ValueError as error:
        raise DumpError(f"{file} is not JSON: {error}") from error
    if not isinstance(sizes, dict):
        raise DumpError(f"{file} is not a JSON object")
    for key, value in sizes.items():
        if key not in _KEYS:
            raise DumpError(f'{file}: "{key}" is none of {", ".join(_KEYS)}')
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise DumpError(f'{file}: "{key}" is {json.dumps(value)}, which --help does not have')
    for key in ("layout", "producer", *(() if "problem" in sizes else ("model",))):
        if key not in sizes:
            raise DumpError(f'{file} lacks "{key}"')
    for key in _SIZES if "model" in sizes else ():
        if type(sizes["model"].get(key)) is not int or sizes["model"][key] < 1:
            raise DumpError(f'{file}: "model" needs "{key}", a number over 0')
    of_rank = sizes.get("tokens", [])
    if not all(isinstance(rows, list) and all(type(token) is int for token in rows) for rows in of_rank):
        raise DumpError(f'{file}: "tokens" is not a list of numbers for every rank')
    return sizes


def _tensors(name: str) -> tuple[str, ...]:
    """What a parameter of Megatron's layer holds; nothing where it is none."""
    named = find(MEGATRON, name)
    return named.holds.tensors if named else ()


def _read(file, rank, layout, model, problem, tokens, sizes):
    """One rank's part of the dump."""
    try:
        held = load_file(str(file))
    except SafetensorError as error:
        raise DumpError(f"{file} is not a safetensors file: {error}") from error
    rows, gradients, weights = {}, {}, {}
    for key, value in held.items():
        kind, _, name = key.partition(":")
        if key in ("x", "d_y", "y", "d_x"):
            rows[key] = value
        elif kind in ("grad", "weight") and _tensors(name):
            (gradients if kind == "grad" else weights)[name] = value
        else:
            raise DumpError(f'{file}: "{key}" is nothing of an MoE layer of Megatron; use grad:NAME or weight:NAME, '
                            f"where NAME ends with one of {', '.join(MEGATRON)}, or x, d_y, y, d_x")
    for key in ("y", "d_x", *(() if problem else ("x", "d_y"))):
        if key not in rows:
            raise DumpError(f'{file} lacks "{key}"')
    for key, value in rows.items():
        shape = [len(tokens) // layout.local_batch, layout.local_batch, model["d_model"]]
        if list(value.shape) != shape:
            raise DumpError(f'{file}: "{key}" has the shape {list(value.shape)}, not [S, B, D] = {shape}')
        whole = {"x": "x_TD", "d_y": "d_y_TD"}.get(key)
        if problem and whole and not torch.equal(value, problem.rows(whole, tokens).to(value.dtype).view(shape)):
            raise DumpError(f'{file}: "{key}" is not the problem\'s {whole} for tokens {tokens[0]} to {tokens[-1]} of '
                            "rank "
                            f'{rank}; give "tokens", or leave "problem" out')
    held_weights = {tensor for name in weights for tensor in _tensors(name)}
    for tensor in () if problem else (*parameters_of(model), *(BUFFERS if model.get("expert_bias") else ())):
        if tensor not in held_weights:
            raise DumpError(f'{file} lacks the weight:NAME that is {tensor}; give all weights, or "problem"')

    # A parameter without a gradient is told to be missing.
    expected = {name: None for name in weights if _tensors(name)[0] not in BUFFERS}
    scale = sizes.get("scale", layout.dp_replicate * layout.dp_shard * layout.cp)
    return read_rank(
        rank, layout=layout, x=rows.get("x"), d_y=rows.get("d_y"), y=rows["y"], d_x=rows["d_x"], names=MEGATRON,
        gradients={**expected, **gradients}, weights=weights, problem=problem, model=model, tokens=tokens,
        claims=MEGATRON_SHARDS, scale={"dense": scale, "expert": scale},
        casts=sizes.get("casts", {"scores_TE": "float32"}), producer=sizes["producer"],
        versions=sizes.get("versions", {}))


if __name__ == "__main__":
    main()
