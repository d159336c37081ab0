"""Architectures and teachers known by name, and the two papers' spaces and results."""

from typing import Any

import numpy as np

from autodistill_jax.archs.arch import BERT_BASE, AnyArch, Arch, MobileArch, parse_arch
from autodistill_jax.archs.cost import BERT_DIMS, ModelDims
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError

_BERT_LARGE = Arch(layers=24, hidden=1024, heads=16, ffn=4096)


# Each with its own head size, whatever the teacher's is.
NAMED_ARCHS: dict[str, AnyArch] = {
    # What AutoDistil found under BERT-base (arXiv 2201.12507, section 4). Its ffn
    # widths are int(hidden * ratio), the ratios 4, 3, 4 and 3.5.
    "agnostic": Arch(layers=11, hidden=352, heads=10, ffn=1408),
    "proxy_base": Arch(layers=12, hidden=544, heads=9, ffn=1632),
    "proxy_small": Arch(layers=11, hidden=352, heads=8, ffn=1408),
    "proxy_tiny": Arch(layers=7, hidden=160, heads=10, ffn=560),
    "bert_base": BERT_BASE,
    "bert_large": _BERT_LARGE,
    # arXiv 2002.10957, 1909.10351 and 1910.01108; counted as a BERT of that Arch, so
    # with the pooler and segment types that DistilBERT does without.
    "minilm": Arch(layers=6, hidden=384, heads=12, ffn=1536, head_size=32),
    "minilm_12": Arch(layers=12, hidden=384, heads=12, ffn=1536, head_size=32),
    "tinybert": Arch(layers=4, hidden=312, heads=12, ffn=1200, head_size=26),
    "tinybert_6": Arch(layers=6, hidden=768, heads=12, ffn=3072),
    "distilbert": Arch(layers=6, hidden=768, heads=12, ffn=3072),
    # arXiv 2004.02984, table 1.
    "mobilebert": MobileArch(
        24, hidden=512, bottleneck=128, heads=4, ffn=512, stacks=4
    ),
    "mobilebert_tiny": MobileArch(
        24, hidden=512, bottleneck=128, heads=4, ffn=512, stacks=2
    ),
    "ib_bert_large": MobileArch(
        24, hidden=512, bottleneck=1024, heads=4, ffn=4096, stacks=1
    ),
}


# What sets those apart besides their Arch. IB-BERT-large teaches MobileBERT, and has
# GELU and LayerNorm; MobileBERT-tiny's attention reads the block's own bottleneck. Like
# Google's MobileBERT they have no layer on the first token.
_OWN_DIMS: dict[str, dict[str, Any]] = {
    "mobilebert": {"pooler": False},
    "mobilebert_tiny": {"attention_input": "bottleneck", "pooler": False},
    "ib_bert_large": {
        "attention_input": "stream",
        "norm": "layer_norm",
        "activation": "gelu",
        "pooler": False,
    },
}


_CASED_DIMS = ModelDims(vocab=28996)


# Its two first position embeddings stand for padding: 512 of 514 are of use.
_ROBERTA_DIMS = ModelDims(vocab=50265, positions=512, types=1, norm_epsilon=1e-5)


# Hub names -> their Arch and ModelDims, as far as `cost` reads them.
NAMED_TEACHERS = {
    "bert-base-uncased": (BERT_BASE, BERT_DIMS),
    "bert-large-uncased": (_BERT_LARGE, BERT_DIMS._replace(reference_heads=16)),
    "bert-base-cased": (BERT_BASE, _CASED_DIMS),
    "bert-large-cased": (_BERT_LARGE, _CASED_DIMS._replace(reference_heads=16)),
    "google/electra-base-discriminator": (BERT_BASE, BERT_DIMS),
    "roberta-base": (BERT_BASE, _ROBERTA_DIMS),
    "roberta-large": (_BERT_LARGE, _ROBERTA_DIMS._replace(reference_heads=16)),
}


# The hub's full names of the same.
NAMED_TEACHERS |= {
    f"{'FacebookAI' if name.startswith('roberta') else 'google-bert'}/{name}": entry
    for name, entry in NAMED_TEACHERS.items()
    if "/" not in name
}


def parse_arch_or_name(text: str, head_size: int, field: str = "--arch") -> AnyArch:
    """The Arch that a text names, or whose sizes it lists.

    Args:
      text: a name of `NAMED_ARCHS`, in any case, with "-" or "_"; or sizes, see
        `arch.parse_arch`.
      head_size: channels of a head where sizes do not say it.
      field: what the errors call the text.

    Returns:
      An Arch or a MobileArch.

    Raises:
      UserError: neither; lists the names and shows the form of sizes.
    """
    if "=" in text:
        return parse_arch(text, head_size, field)
    arch = named_arch(text)
    if arch is None:
        raise UserError(
            f"{field}={text} is not a known Arch name; known by name: "
            f"{', '.join(NAMED_ARCHS)}; or give its sizes, like "
            "layers=3,hidden=192,heads=6,ffn=768"
        )
    return arch


def named_arch(text: str) -> AnyArch | None:
    """The Arch of `NAMED_ARCHS` that `text` names, None if it names none."""
    return NAMED_ARCHS.get(_normalized_name(text))


def named_dims(text: str, shared: ModelDims) -> ModelDims:
    """The dims of a named Arch.

    The first paper's students are counted relative to BERT-base's heads, as printed.

    Args:
      text: a name of `NAMED_ARCHS`.
      shared: the dims that it has but for what sets it apart.

    Returns:
      `shared`, with the Arch's own norm, activation and so on.
    """
    name = _normalized_name(text)
    heads = max(BERT_BASE.heads, NAMED_ARCHS[name].heads)
    return shared._replace(reference_heads=heads, **_OWN_DIMS.get(name, {}))


def _normalized_name(text: str) -> str:
    return text.strip().lower().replace("-", "_")


_QUARTER_RATIOS = tuple(1 + i / 4 for i in range(13))


_ABLATION_AXES: dict[str, Any] = {
    "layers": tuple(range(1, 7)),
    "hidden": tuple(range(64, 769, 64)),
    "heads": tuple(range(1, 13)),
}


# AutoDistil's (arXiv 2201.12507), all under BERT-base, heads of 64 channels.
AUTODISTIL_SPACES = {
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
    "one_864": Space(**_ABLATION_AXES, ffn_ratio=(4.0,)),
    "one_11232": Space(**_ABLATION_AXES, ffn_ratio=_QUARTER_RATIOS),
}


# Of AutoDistill (arXiv 2201.08539), all of 24 blocks; MobileBERT itself is in it.
AUTODISTILL_SPACE = Space(
    layers=(24,),
    hidden=(128, 256, 384, 512),
    heads=(1, 2, 4, 8),
    ffn=(384, 512, 640),
    bottleneck=(64, 96, 128, 160),
    stacks=(2, 4, 6),
)


# What AutoDistill printed of its students and others: parameters, the latency on a
# TPUv4i (at which batch and length it does not say), F1 and exact match on SQuAD 1.1.
PRINTED_RESULTS = {
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

    The heuristics of the first paper (AutoDistil, section 3.1): compact sub-spaces,
    four neighbouring values an axis (at most 256 Archs), so that sub-networks that
    share weights are alike; every width a fraction of the teacher's, in steps of a
    layer of twelve, 1/24 of the hidden width, 1/8 of the ffn ratio, a head of twelve.
    BERT-base with k=3 gives the paper's table; other k lie on the line between its
    three (our extension).

    Args:
      teacher: of Python ints.
      k: how many sub-spaces.

    Returns:
      k Spaces.

    Raises:
      UserError: k is below 1.
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
                layers=_four_values(layers * teacher.layers, teacher.layers / 12),
                hidden=_four_values(hidden * teacher.hidden, teacher.hidden / 24),
                heads=_four_values(heads * teacher.heads, teacher.heads / 12),
                ffn_ratio=tuple(
                    fuller * (round(2 * ratio) / 2 - 0.5 * i) for i in range(3, -1, -1)
                ),
                head_size=teacher.head_size,
            )
        )
    return spaces


def _four_values(last: float, step: float) -> tuple[int, ...]:
    """Four whole values, `step` (at least 1) apart, up to `last`; none below 1."""
    step = max(1, round(step))
    last = max(1, round(last / step) * step)
    return tuple(value for i in range(3, -1, -1) if (value := last - i * step) >= 1)
