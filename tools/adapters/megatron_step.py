#!/usr/bin/env python3
"""Runs one MoE layer of the installed Megatron-core under a layout and dumps its gradients for moegate.

The layer is Megatron's own MoELayer with its local (not TransformerEngine) modules, wrapped in its own
DistributedDataParallel; the gradients are what its finalize_model_grads leaves in param.main_grad.

Started by `moegate run CASE --producer megatron-core==0.19.2`, by torchrun, or by hand:

    build/moegate inputs layouts/softmax-shared --out problem
    $(tools/adapters/environment.sh megatron-core==0.19.2) tools/adapters/megatron_step.py --release 0.19.2 \\
        --problem problem --layout tp2.ep2.etp1 --out dump
    build/moegate check dump
"""

from megatron_layer import MegatronCore
from moegate_dump.ranks import serve

if __name__ == "__main__":
    serve(MegatronCore())
