"""As much of a torchtitan model as its own parallelisation looks at, around one MoE layer."""

import torch


class Block(torch.nn.Module):
    """A transformer block that is its MoE layer alone."""

    def __init__(self, moe):
        super().__init__()
        self.moe_enabled, self.moe = True, moe

    def forward(self, x):
        return self.moe(x)


class Model(torch.nn.Module):
    """A model of one such block. The head is `output` up to 0.2.2 and `lm_head` since."""

    tok_embeddings = norm = output = lm_head = None
    enable_weight_tying = False

    def __init__(self, block):
        super().__init__()
        self.layers = torch.nn.ModuleDict({"0": block})

    def forward(self, x):
        return self.layers["0"](x)
