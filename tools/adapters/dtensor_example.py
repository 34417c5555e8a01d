#!/usr/bin/env python3
"""A home-made MoE layer, its experts sharded by parallelize_module, under the gate:

    build/moegate inputs issues/torchtitan-2387b --out problem
    torchrun --standalone --nproc-per-node 2 tools/adapters/dtensor_example.py problem dump [--forget]
    build/moegate check dump

With --forget the experts' outputs are summed over tp after the scores, and the gate's gradient is a share nobody sums.
"""

import sys

import torch
import torch.distributed as dist
from moegate_dump import Layout, capture, load_inputs
from torch.distributed.tensor import DTensor, Partial, Replicate, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

NAMES = {"gate.weight": "gate_ED", "experts.{e}.w1.weight": "w1_EFD", "experts.{e}.w3.weight": "w3_EFD",
         "experts.{e}.w2.weight": "w2_EDF"}


class MoE(torch.nn.Module):
    def __init__(self, d_model, d_expert, experts, top_k):
        super().__init__()
        sizes = {"w1": (d_model, d_expert), "w3": (d_model, d_expert), "w2": (d_expert, d_model)}
        self.top_k, self.gate = top_k, torch.nn.Linear(d_model, experts, bias=False)
        self.experts = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(*size, bias=False) for name, size in sizes.items()})
            for _ in range(experts))

    def forward(self, x):
        scores, chosen = self.gate(x).softmax(dim=-1).topk(self.top_k)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            h = torch.nn.functional.silu(expert["w1"](x[token])) * expert["w3"](x[token])
            y = y.index_add(0, token, expert["w2"](h) * scores[token, slot, None])
        return y


folder, out, forget = sys.argv[1], sys.argv[2], "--forget" in sys.argv
dist.init_process_group("gloo")
tp = dist.get_world_size()
mesh = init_device_mesh("cpu", (tp,), mesh_dim_names=("tp",))
model = load_inputs(folder).model
moe = MoE(model["d_model"], model["d_expert"], model["experts"], model["top_k"]).double()
problem = load_inputs(folder, moe, NAMES)
rowwise = RowwiseParallel(output_layouts=Partial()) if forget else RowwiseParallel()
for expert in moe.experts:
    parallelize_module(expert, mesh, {"w1": ColwiseParallel(), "w3": ColwiseParallel(), "w2": rowwise})
x, d_y = problem.tensors["x_TD"].clone().requires_grad_(), problem.tensors["d_y_TD"]
y = moe(x)
if forget:
    y = DTensor.from_local(y, mesh, [Partial()]).redistribute(placements=[Replicate()]).to_local()
(y * d_y).sum().backward()
# Every rank has all tokens (sp0); how the experts lie is read off their DTensors, and the gate is whole on every rank.
capture(out, layout=Layout(tp=tp, sp=False), problem=problem, module=moe, names=NAMES, x=x, d_y=d_y, y=y)
dist.destroy_process_group()
