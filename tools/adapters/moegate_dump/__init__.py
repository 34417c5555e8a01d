"""Dumps the gradients of a parallel Mixture-of-Experts step, for moegate to judge (tools/adapters/README.md)."""

from .capture import capture
from .errors import DumpError, Skip
from .layout import Layout
from .names import HUGGING_FACE, HUGGING_FACE_TRANSPOSED, MEGATRON, MEGATRON_SHARDS, TORCHTITAN, Holds, NameMap
from .problem import Problem, load_inputs

__all__ = ["HUGGING_FACE", "HUGGING_FACE_TRANSPOSED", "MEGATRON", "MEGATRON_SHARDS", "TORCHTITAN", "DumpError",
           "Holds", "Layout", "NameMap", "Problem", "Skip", "capture", "load_inputs"]
