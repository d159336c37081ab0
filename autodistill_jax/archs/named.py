"""Which architectures and teachers are known by name?

Sizes alone, no weights: enough to count what they cost, without a network.
"""

from autodistill_jax.archs.arch import BERT_BASE, AnyArch, Arch, MobileArch, parse
from autodistill_jax.archs.cost import BERT_SIZES, Sizes
from autodistill_jax.errors import UserError

_BERT_LARGE = Arch(layers=24, hidden=1024, heads=16, ffn=4096)

# Each with its own head size, whatever the teacher's is.
ARCHS = {
    # What AutoDistil found under BERT-base (arXiv 2201.12507, section 4). Its ffn widths
    # are int(hidden * ratio), the ratios 4, 3, 4 and 3.5.
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
_KINDS = {
    "mobilebert": {"pooler": False},
    "mobilebert_tiny": {"reads": "bottleneck", "pooler": False},
    "ib_bert_large": {
        "reads": "stream",
        "norm": "layer_norm",
        "activation": "gelu",
        "pooler": False,
    },
}

_CASED = Sizes(vocab=28996)
# Its two first position embeddings stand for padding: 512 of 514 are of use.
_ROBERTA = Sizes(vocab=50265, positions=512, types=1, norm_epsilon=1e-5)

# Hub names -> their Arch and Sizes, as far as `cost` reads them.
TEACHERS = {
    "bert-base-uncased": (BERT_BASE, BERT_SIZES),
    "bert-large-uncased": (_BERT_LARGE, BERT_SIZES._replace(heads=16)),
    "bert-base-cased": (BERT_BASE, _CASED),
    "bert-large-cased": (_BERT_LARGE, _CASED._replace(heads=16)),
    "google/electra-base-discriminator": (BERT_BASE, BERT_SIZES),
    "roberta-base": (BERT_BASE, _ROBERTA),
    "roberta-large": (_BERT_LARGE, _ROBERTA._replace(heads=16)),
}
# The hub's full names of the same.
TEACHERS |= {
    f"{'FacebookAI' if name.startswith('roberta') else 'google-bert'}/{name}": known
    for name, known in TEACHERS.items()
    if "/" not in name
}


def read(text: str, head_size: int, field: str = "--arch") -> AnyArch:
    """The Arch of a name (any case, "-" or "_") or of sizes, see `arch.parse`.

    field: what the errors call the text.

    Raises:
      UserError: neither; lists the names and shows the form of sizes.
    """
    if "=" in text:
        return parse(text, head_size, field)
    arch = by_name(text)
    if arch is None:
        raise UserError(
            f"{field}={text} is no Arch; known by name: {', '.join(ARCHS)}; or give its "
            "sizes, like layers=3,hidden=192,heads=6,ffn=768"
        )
    return arch


def by_name(text: str) -> AnyArch | None:
    """The Arch that `text` names, None if it names none."""
    return ARCHS.get(_key(text))


def sizes(text: str, shared: Sizes) -> Sizes:
    """Those of a named Arch: `shared`, but for what sets it apart.

    The first paper's students are counted relative to BERT-base's heads, as printed.
    """
    heads = max(BERT_BASE.heads, by_name(text).heads)
    return shared._replace(heads=heads, **_KINDS.get(_key(text), {}))


def _key(text: str) -> str:
    return text.strip().lower().replace("-", "_")
