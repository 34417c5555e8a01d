"""How the ranks of a step are arranged: moegate's layouts, such as "dp2.tp2.ep4.etp1".

The same ranks are seen as a dense mesh (dp_replicate, dp_shard, cp, tp) and as an expert mesh (edp, ep, etp), in both
the last axis fastest. tools/adapters/README.md says how a framework's own meshes map to these.
"""

import re
from dataclasses import dataclass

from .errors import DumpError

DENSE_AXES = ("dp_replicate", "dp_shard", "cp", "tp")
EXPERT_AXES = ("edp", "ep", "etp")

_FIELDS = {"dpr": "dp_replicate", "dp": "dp_shard", "cp": "cp", "tp": "tp", "ep": "ep", "etp": "etp",
           "lb": "local_batch", "sp": "sp"}


@dataclass(frozen=True)
class Layout:
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 0  # 0: tp when ep is 1, else 1
    sp: bool = True  # sequence parallelism: tokens are sharded over tp outside the layer
    local_batch: int = 1  # sequences per data-parallel rank

    def __post_init__(self):
        if not self.etp:
            object.__setattr__(self, "etp", self.tp if self.ep == 1 else 1)
        if self.world % (self.ep * self.etp) != 0:
            raise DumpError(f"layout: ep {self.ep} times etp {self.etp} does not divide the {self.world} ranks of "
                            "dp * cp * tp")

    @staticmethod
    def parse(text: str) -> "Layout":
        sizes: dict[str, int] = {}
        for part in text.split("."):
            found = re.fullmatch(r"([a-z]+)(\d+)", part)
            if not found or found[1] not in _FIELDS or _FIELDS[found[1]] in sizes:
                raise DumpError(f'layout "{text}": "{part}" is not a part, or stands twice; parts are '
                                f"{', '.join(_FIELDS)} with a size, as in dp2.tp2.ep4.etp1")
            sizes[_FIELDS[found[1]]] = int(found[2])
        sp = sizes.pop("sp", 1) != 0
        if any(size < 1 for size in sizes.values()):
            raise DumpError(f'layout "{text}" has a size of 0')
        return Layout(**sizes, sp=sp)

    @property
    def world(self) -> int:
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def edp(self) -> int:
        return self.world // (self.ep * self.etp)

    def size(self, axis: str) -> int:
        return getattr(self, axis)

    def axes(self, kind: str) -> tuple[str, ...]:
        """Axes of the mesh "dense" or "expert", outermost first."""
        return DENSE_AXES if kind == "dense" else EXPERT_AXES

    def coordinate(self, rank: int, axis: str) -> int:
        axes = DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES
        for name in reversed(axes):
            if name == axis:
                return rank % self.size(name)
            rank //= self.size(name)
        raise DumpError(f'"{axis}" is not an axis; use {", ".join(DENSE_AXES + EXPERT_AXES)}')

    def group(self, rank: int, along: tuple[str, ...]) -> list[int]:
        """The ranks that differ from `rank` along axes of one mesh only, in the order of their coordinates."""
        axes = DENSE_AXES if along[0] in DENSE_AXES else EXPERT_AXES
        fixed = [axis for axis in axes if axis not in along]
        return [other for other in range(self.world)
                if all(self.coordinate(other, axis) == self.coordinate(rank, axis) for axis in fixed)]

    def tokens(self, count: int, rank: int, over_tp: bool | None = None) -> list[int]:
        """Global token indices of `rank`'s share of the layer's input, for a batch of `count` tokens.

        Data-parallel ranks hold whole sequences, cp and (with sp, or `over_tp`) tp chunks of each sequence: with a
        local batch over 1 the rows are not a contiguous range.
        """
        split = self.sp if over_tp is None else over_tp
        sequences = self.dp_replicate * self.dp_shard * self.local_batch
        parts = sequences * self.cp * (self.tp if split else 1)
        if count % parts != 0:
            raise DumpError(f"{count} tokens cannot be spread evenly over {parts} parts")
        length, chunk = count // sequences, count // parts
        start = self.coordinate(rank, "cp") * (length // self.cp)
        if split:
            start += self.coordinate(rank, "tp") * chunk
        first = (self.coordinate(rank, "dp_replicate") * self.dp_shard
                 + self.coordinate(rank, "dp_shard")) * self.local_batch
        return [(first + sequence) * length + start + i for sequence in range(self.local_batch) for i in range(chunk)]

    def tokens_side_by_side(self, count: int, rank: int) -> list[int]:
        """The same tokens in the order of Megatron's [S, B, D]: the rank's sequences side by side."""
        tokens = self.tokens(count, rank)
        length = len(tokens) // self.local_batch
        return [tokens[sequence * length + i] for i in range(length) for sequence in range(self.local_batch)]

    def mesh_json(self) -> dict:
        return {kind: {"axes": list(self.axes(kind)), "sizes": [self.size(axis) for axis in self.axes(kind)]}
                for kind in ("dense", "expert")}

    def json(self) -> dict:
        return {name: getattr(self, name) for name in ("dp_replicate", "dp_shard", "cp", "tp", "ep", "etp", "sp",
                                                       "local_batch")}
