"""What Megatron-core needs to run on a CPU with Gloo. None of it changes what is computed or communicated.

- torch.cuda's current_device, streams, events and synchronize, and Tensor.cuda, mean the CPU: they are called whatever
  the device is. There is one device and everything runs in order.
- maybe_move_tensor_to_cpu returns numpy arrays of tensors that are on the CPU already, as it does of others.
- all_gather of a list of different sizes, which Gloo refuses: gathered padded to the largest and cut again.
"""

import contextlib

import torch
import torch.distributed as dist


class _Anything:
    """A stream or an event of a device that runs everything in order."""

    def __init__(self, *arguments, **options):
        pass

    def __getattr__(self, name):
        return lambda *arguments, **options: self


def adapt() -> None:
    """Once per process, before Megatron's groups are made."""
    only = _Anything()
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.Stream = torch.cuda.Event = _Anything
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.current_stream = lambda *device: only
    torch.cuda.synchronize = lambda *device: None
    torch.Tensor.cuda = lambda tensor, *arguments, **options: tensor

    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    moe_utils.maybe_move_tensor_to_cpu = token_dispatcher.maybe_move_tensor_to_cpu = _as_it_is
    dist.all_gather = _uneven_all_gather(dist.all_gather)


def _as_it_is(tensor, as_numpy=False, record_stream=False):
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _uneven_all_gather(even):
    def all_gather(outputs, value, group=None, async_op=False):
        rows = [output.shape[0] for output in outputs]
        if len(set(rows)) == 1:
            return even(outputs, value, group=group, async_op=async_op)
        padded = value.new_zeros(max(rows), *value.shape[1:])
        padded[:value.shape[0]] = value
        gathered = [torch.empty_like(padded) for _ in rows]
        even(gathered, padded, group=group)
        for output, all_rows in zip(outputs, gathered, strict=True):
            output.copy_(all_rows[:output.shape[0]])
        return None

    return all_gather
