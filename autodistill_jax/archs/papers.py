"""Which spaces did the two papers search, and what did they print?"""

import numpy as np

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError

_QUARTERS = tuple(1 + i / 4 for i in range(13))
_SIZES = {
    "layers": tuple(range(1, 7)),
    "hidden": tuple(range(64, 769, 64)),
    "heads": tuple(range(1, 13)),
}

# AutoDistil's (arXiv 2201.12507), all under BERT-base, heads of 64 channels.
AUTODISTIL = {
    # Its three sub-spaces (table 1), 256 Archs each.
    "tiny": Space(
        layers=(4, 5, 6, 7),
        hidden=(128, 160, 192, 224),
        heads=(7, 8, 9, 10),
        ffn_ratio=(2.0, 2.5, 3.0, 3.5),
    ),
    "small": Space(
        layers=(9, 10, 11, 12),
        hidden=(256, 288, 320, 352),
        heads=(7, 8, 9, 10),
        ffn_ratio=(2.5, 3.0, 3.5, 4.0),
    ),
    "base": Space(
        layers=(9, 10, 11, 12),
        hidden=(544, 576, 608, 640),
        heads=(9, 10, 11, 12),
        ffn_ratio=(2.5, 3.0, 3.5, 4.0),
    ),
    # The single spaces (K=1) that its ablation compares with them, by their size.
    "one_27": Space(
        layers=(3, 4, 6), hidden=(192, 480, 768), heads=(6, 9, 12), ffn_ratio=(4.0,)
    ),
    # The paper gives this one's size only; that it is the next one's sizes at a single
    # ratio, 4, is our reading.
    "one_864": Space(**_SIZES, ffn_ratio=(4.0,)),
    "one_11232": Space(**_SIZES, ffn_ratio=_QUARTERS),
}

# Of AutoDistill (arXiv 2201.08539), all of 24 blocks; MobileBERT itself is in it.
AUTODISTILL = Space(
    layers=(24,),
    hidden=(128, 256, 384, 512),
    heads=(1, 2, 4, 8),
    ffn=(384, 512, 640),
    bottleneck=(64, 96, 128, 160),
    stacks=(2, 4, 6),
)

# What it printed of its students and others: parameters, the latency on a TPUv4i (its
# batch and length are not told), F1 and exact match on SQuAD 1.1.
PRINTED = {
    "BERT-base": ("109 M", "", "88.5 / 80.8"),
    "DistilBERT": ("67 M", "", "85.8 / 77.1"),
    "TinyBERT": ("67 M", "", "87.5 / 79.7"),
    "MobileBERT": ("25.3 M", "0.65 ms", "90.0 / 82.9"),
    "AutoDistill, 22.8 M": ("22.8 M", "0.59 ms", "88.4 / 80.8"),
    "AutoDistill, 20.6 M": ("20.6 M", "0.49 ms", "88.1 / 80.5"),
}

# The last of four values an axis, of BERT-base's 12 layers, 768 wide, 12 heads: the
# tiny, small and base sub-spaces.
_ANCHORS = np.array(
    [
        # layers, hidden, ffn ratio, heads
        [7 / 12, 224 / 768, 3.5, 10 / 12],
        [12 / 12, 352 / 768, 4.0, 10 / 12],
        [12 / 12, 640 / 768, 4.0, 12 / 12],
    ]
)


def partition(teacher: Arch, k: int) -> list[Space]:
    """Cuts the Archs under a teacher into k compact sub-spaces, smallest first.

    The heuristics of the first paper (AutoDistil, section 3.1): compact sub-spaces, four
    neighbouring values an axis (at most 256 Archs), so that sub-networks that share
    weights are alike; every width a fraction of the teacher's, in steps of a layer of
    twelve, 1/24 of the hidden width, 1/8 of the ffn ratio, a head of twelve. BERT-base
    with k=3 gives the paper's table; other k lie on the line between its three (ours).
    """
    if k < 1:
        raise UserError(f"partition into {k} sub-spaces; it takes 1 or more")
    spaces = []
    fuller = teacher.ffn / teacher.hidden / 4  # 1 for BERT
    positions = np.linspace(0, 2, k) if k > 1 else np.array([1.0])
    for position in positions:
        layers, hidden, ratio, heads = (
            np.interp(position, (0, 1, 2), _ANCHORS[:, axis]) for axis in range(4)
        )
        spaces.append(
            Space(
                layers=_window(layers * teacher.layers, teacher.layers / 12),
                hidden=_window(hidden * teacher.hidden, teacher.hidden / 24),
                heads=_window(heads * teacher.heads, teacher.heads / 12),
                ffn_ratio=tuple(
                    fuller * (round(2 * ratio) / 2 - 0.5 * i) for i in range(3, -1, -1)
                ),
                head_size=teacher.head_size,
            )
        )
    return spaces


def _window(last: float, step: float) -> tuple[int, ...]:
    """Four whole values, `step` (at least 1) apart, that end at `last`; none below 1."""
    step = max(1, round(step))
    last = max(1, round(last / step) * step)
    return tuple(value for i in range(3, -1, -1) if (value := last - i * step) >= 1)
