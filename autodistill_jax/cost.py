"""What does one Arch cost? Parameters and FLOPs, in the two conventions there are."""

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """What teacher, SuperLM and student of one run share: sizes that are not elastic."""

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    heads: int = 12  # the teacher's: the paper's count takes widths relative to it
    embedding: int = 0  # ELECTRA: embeddings of this width, projected; 0: of the hidden
    family: str = "bert"  # whose checkpoints it comes from and goes out as


BERT_SIZES = Sizes()


def cost(arch: Any, sizes: Sizes = BERT_SIZES, length: int = 128) -> dict[str, int]:
    """Parameters and FLOPs of one `arch.Arch`, in both conventions.

    FLOPs are multiply-adds of one forward pass over one text of `length` tokens,
    embeddings (look-ups) excluded, their projection to the hidden width included.
    `params, flops` are what the network really has and runs ("executed": q/k/v width =
    heads * head_size). `params_paper, flops_paper` are
    the AutoDistil paper's own count (arXiv 2201.12507), which takes the q/k/v width of
    A heads to be hidden * A / 12 (the teacher's heads) and reproduces its printed tables.
    """
    layers, hidden, ffn, n = arch.layers, arch.hidden, arch.ffn, length
    width = arch.heads * arch.head_size
    e = sizes.embedding or hidden
    embeddings = (sizes.vocab + sizes.positions + sizes.types + 2) * e
    if sizes.embedding:
        embeddings += (e + 1) * hidden
    layer = (
        3 * (hidden + 1) * width  # q, k, v
        + (width + 1) * hidden  # attention output
        + (hidden + 1) * ffn
        + (ffn + 1) * hidden
        + 4 * hidden  # two LayerNorms
    )
    pooler = (hidden + 1) * hidden
    layer_flops = n * (4 * hidden * width + 2 * hidden * ffn) + 2 * n * n * width
    h, a, r = hidden, arch.heads / sizes.heads, ffn / hidden
    paper_params = (
        h * (sizes.vocab + sizes.positions + 4)
        + layers * (h * h + 3 * h * h * a + 6 * h)
        + layers * (2 * r * h * h + r * h + 3 * h)
        + h * h
        + 2 * h
    )
    paper_flops = (
        layers * (3 * n * h * h * a + 2 * n * n * h * a + n * h * h + 2 * r * n * h * h)
        + n * h * h
        + 2 * h
    )
    return {
        "params": embeddings + layers * layer + pooler,
        "flops": layers * layer_flops + hidden * hidden + n * sizes.embedding * hidden,
        "params_paper": round(paper_params),
        "flops_paper": round(paper_flops),
    }
