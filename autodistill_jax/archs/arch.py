"""Architectures as values: `Arch` of the `bert` family, `MobileArch` of `mobilebert`.

With Python ints an Arch sizes a model; with int32 arrays it selects a sub-network
inside a SuperLM, under one trace.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from autodistill_jax.errors import UserError


@dataclasses.dataclass(frozen=True, order=True)
class Arch:
    """The sizes of one network of the `bert` family.

    The names in `axes` are the parameters' logical axis names. The q/k/v width is
    heads * head_size.

    Attributes:
      layers: Transformer layers.
      hidden: channels of the hidden states.
      heads: attention heads.
      ffn: channels between a layer's two feed-forward products.
      head_size: channels of a head; static, even inside a SuperLM.
    """

    layers: Any
    hidden: Any
    heads: Any
    ffn: Any
    head_size: int = 64

    axes: ClassVar[tuple[str, ...]] = ("layers", "hidden", "heads", "ffn")
    qkv_axis: ClassVar[str] = "heads"  # the axis of queries, keys and values

    def __str__(self) -> str:
        return _format_sizes(self)

    @property
    def name(self) -> str:
        """The name of its folder: 3x192-h6-f768."""
        return f"{self.layers}x{self.hidden}-h{self.heads}-f{self.ffn}"

    @property
    def is_stock_hf(self) -> bool:
        """Whether Hugging Face's own BertModel can have this shape."""
        return self.width == self.hidden

    @property
    def width(self) -> Any:
        """Channels of the queries (and of the keys, and of the values)."""
        return self.heads * self.head_size

    @property
    def shardable_axes(self) -> dict[str, int]:
        """The axes that devices may split, and how many channels stay together."""
        return {"heads": self.head_size, "ffn": 1}

    def num_channels(self, axis: str) -> Any:
        """Channels of one of `axes`: an attention head has head_size of them."""
        return self.width if axis == "heads" else getattr(self, axis)


@dataclasses.dataclass(frozen=True, order=True)
class MobileArch:
    """The sizes of one network of the `mobilebert` family (arXiv 2004.02984).

    Its blocks work in a bottleneck between the hidden states. The q/k/v width is the
    bottleneck, whatever the heads: they only re-split it.

    Attributes:
      layers: blocks.
      hidden: channels of the hidden states.
      bottleneck: channels inside a block.
      heads: attention heads, which divide the bottleneck.
      ffn: channels between the two products of a feed-forward network.
      stacks: feed-forward networks of a block, one after another.
    """

    layers: Any
    hidden: Any
    bottleneck: Any
    heads: Any
    ffn: Any
    stacks: Any

    axes: ClassVar[tuple[str, ...]] = (
        "layers",
        "hidden",
        "bottleneck",
        "heads",
        "ffn",
        "stacks",
    )
    qkv_axis: ClassVar[str] = "bottleneck"
    is_stock_hf: ClassVar[bool] = True  # as a stock MobileBertModel, whatever the sizes

    def __str__(self) -> str:
        return _format_sizes(self)

    @property
    def name(self) -> str:
        """The name of its folder: 24x512-b128-h4-f512-s4."""
        return (
            f"{self.layers}x{self.hidden}-b{self.bottleneck}-h{self.heads}-f{self.ffn}"
            f"-s{self.stacks}"
        )

    @property
    def head_size(self) -> Any:
        """Channels of a head."""
        return self.bottleneck // self.heads

    @property
    def width(self) -> Any:
        """Channels of the queries (and of the keys, and of the values)."""
        return self.bottleneck

    @property
    def shardable_axes(self) -> dict[str, int]:
        """See `Arch`: heads only re-split the bottleneck, so that stays whole."""
        return {"ffn": 1}

    def num_channels(self, axis: str) -> Any:
        """Channels of one of `axes`."""
        return getattr(self, axis)


AnyArch = Arch | MobileArch

jax.tree_util.register_dataclass(
    Arch, data_fields=list(Arch.axes), meta_fields=["head_size"]
)
jax.tree_util.register_dataclass(
    MobileArch, data_fields=list(MobileArch.axes), meta_fields=[]
)

BERT_BASE = Arch(layers=12, hidden=768, heads=12, ffn=3072)


def parse_arch(text: str, head_size: int, field: str = "--arch") -> AnyArch:
    """Reads an Arch out of text like `layers=3,hidden=192,heads=6,ffn=768`.

    Args:
      text: a size for each axis; with `bottleneck=...,stacks=...` among them it is a
        MobileArch. `head_size=...` may stand beside the sizes of an Arch.
      head_size: channels of a head where the text has none.
      field: what the errors call the text.

    Returns:
      An Arch or a MobileArch.

    Raises:
      UserError: a size that is missing, given twice, unknown or no number from 1 on; a
        bottleneck that the heads do not divide.
    """
    needed = (
        "needed: layers=3,hidden=192,heads=6,ffn=768 (head_size=... optional), or with "
        "bottleneck=64,stacks=2 beside them for a MobileBERT"
    )
    values = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        key, _, value = part.partition("=")
        # More than seven digits are a slip; of thousands int() itself would raise.
        number = re.fullmatch("0*[1-9][0-9]{0,6}", value, re.ASCII)
        allowed = (*MobileArch.axes, "head_size")
        if key not in allowed or key in values or not number:
            raise UserError(f"{field} has {part!r}; {needed}")
        values[key] = int(value)
    mobile = "bottleneck" in values or "stacks" in values
    missing = [a for a in (MobileArch if mobile else Arch).axes if a not in values]
    if missing:
        raise UserError(f"{field}={text} lacks {', '.join(missing)}; {needed}")
    if not mobile:
        return Arch(**{"head_size": head_size, **values})
    if "head_size" in values:
        raise UserError(
            f"{field}={text} has a head_size, which a MobileBERT's bottleneck / heads "
            "already gives; take it out"
        )
    check_head_split(values["bottleneck"], values["heads"], f"{field}={text}")
    return MobileArch(**values)


def check_head_split(bottleneck: int, heads: int, where: str) -> None:
    """Checks that the heads divide a MobileArch's bottleneck.

    Args:
      bottleneck: channels inside a block.
      heads: attention heads.
      where: what the error begins with.

    Raises:
      UserError: they do not.
    """
    if bottleneck % heads:
        raise UserError(
            f"{where}: heads {heads} do not divide the bottleneck {bottleneck}; a "
            "MobileBERT's heads split its bottleneck, so take heads that do"
        )


def describe(arch: AnyArch) -> str:
    """An Arch in words: "3 layers, hidden 192, heads 6, ffn 768"."""
    sizes = (f"{axis} {getattr(arch, axis)}" for axis in arch.axes[1:])
    return f"{arch.layers} layer{'s' if arch.layers > 1 else ''}, {', '.join(sizes)}"


def nearest_arch(archs: Iterable[AnyArch], arch: AnyArch) -> AnyArch:
    """The one of `archs` whose sizes are closest to those of `arch`, in ratios.

    An Arch's heads count by their channels: its head size may be another.

    Args:
      archs: the candidates, of the same family as `arch`.
      arch: what they are compared with.

    Returns:
      The candidate with the smallest sum of |log(ratio)| over the axes.
    """
    return min(archs, key=lambda candidate: _log_ratio_distance(arch, candidate))


def pareto_indices(points: Iterable[Sequence[float]]) -> list[int]:
    """Indices of the Pareto set when every coordinate is to be small.

    Args:
      points: of equal length each.

    Returns:
      Indices in order; of equal points the first alone.
    """
    points = np.asarray(list(points), np.float64)
    indices = []
    for i, point in enumerate(points):
        no_worse = (points <= point).all(axis=1)
        better = (points < point).any(axis=1)
        duplicate = (points[:i] == point).all(axis=1).any() if i else False
        if not (no_worse & better).any() and not duplicate:
            indices.append(i)
    return indices


def spread_layers(depth: int, layers: int) -> tuple[int, ...]:
    """Layers spread over a network's depth, the first among them, never the last.

    floor(i * layers / depth), i = 0..depth-1 (AutoDistil's code; 12 -> 4: 0, 3, 6, 9).

    Args:
      depth: layers of the sub-network.
      layers: layers of the network that they are taken from.

    Returns:
      `depth` indices of its layers, rising.
    """
    return tuple(i * layers // depth for i in range(depth))


def _format_sizes(arch: AnyArch) -> str:
    return ",".join(f"{axis}={getattr(arch, axis)}" for axis in arch.axes)


def _log_ratio_distance(a: AnyArch, b: AnyArch) -> float:
    # Heads by their channels: twelve of 32 are as wide as six of 64.
    ratios = (a.num_channels(axis) / b.num_channels(axis) for axis in a.axes)
    return sum(abs(math.log(ratio)) for ratio in ratios)
