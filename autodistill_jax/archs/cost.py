"""The static dimensions of a model, and the parameters and FLOPs of an Arch."""

from typing import Any, NamedTuple

from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch


class ModelDims(NamedTuple):
    """What teacher, SuperLM and student of one run share: sizes that are not elastic.

    Attributes:
      vocab: rows of the token embedding.
      positions: rows of the position embedding, the longest text.
      types: rows of the token type embedding.
      norm_epsilon: what LayerNorm adds to the variance.
      activation: name of the feed-forward networks' activation.
      reference_heads: the teacher's heads; the paper's count of parameters and FLOPs
        takes widths relative to them.
      embedding: width of the token embedding, which is projected to the hidden width;
        0: the hidden width itself.
      family: whose checkpoints the model comes from and goes out as.
      norm: of a MobileArch alone: "layer_norm", or "no_norm" (scale and bias, no more).
      attention_input: of a MobileArch alone, what queries, keys and values read:
        "shared" (MobileBERT: a bottleneck of queries and keys, and the block's input),
        "stream" (IB-BERT: the block's input), or "bottleneck" (MobileBERT-tiny: the
        block's own bottleneck).
      pooler: whether there is a layer on the first token; without one, what stands for
        the text is the first token itself.
    """

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    reference_heads: int = 12
    embedding: int = 0
    family: str = "bert"
    norm: str = "layer_norm"
    attention_input: str = "shared"
    pooler: bool = True


BERT_DIMS = ModelDims()
MOBILEBERT_DIMS = ModelDims(
    activation="relu",
    reference_heads=4,
    embedding=128,
    family="mobilebert",
    norm="no_norm",
)


def student_dims(
    teacher: ModelDims, family: type[AnyArch], norm: str = ""
) -> ModelDims:
    """The dims of a teacher's students.

    Args:
      teacher: the teacher's dims.
      family: Arch or MobileArch, the students' class.
      norm: of MobileBERTs; "": the teacher's, or no_norm under a BERT.

    Returns:
      The teacher's own dims; under a teacher of the other family the student family's
      usual ones with the teacher's vocabulary, positions and types.
    """
    teacher_is_mobile = teacher.family == MOBILEBERT_DIMS.family
    if (family is MobileArch) == teacher_is_mobile:
        return teacher._replace(norm=norm or teacher.norm)
    base = MOBILEBERT_DIMS if family is MobileArch else BERT_DIMS
    return base._replace(
        vocab=teacher.vocab,
        positions=teacher.positions,
        types=teacher.types,
        norm=norm or base.norm,
    )


def cost(
    arch: AnyArch, dims: ModelDims | None = None, length: int = 128
) -> dict[str, Any]:
    """Parameters and FLOPs of one Arch, in both conventions.

    FLOPs are multiply-adds of one forward pass over one text, embeddings (look-ups)
    excluded, their projection to the hidden width included.

    Args:
      arch: of Python ints.
      dims: of the model; None: BERT's, or MobileBERT's.
      length: tokens of the text.

    Returns:
      `params` and `flops` are what the network really has and runs ("executed": q/k/v
      width = heads * head_size). `params_paper` and `flops_paper` are the AutoDistil
      paper's own count (arXiv 2201.12507), which takes the q/k/v width of A heads to be
      hidden * A / 12 (the teacher's heads) and reproduces its printed tables; None for
      a MobileArch, which that paper does not count.
    """
    if isinstance(arch, MobileArch):
        return _mobilebert_cost(arch, dims or MOBILEBERT_DIMS, length)
    return _bert_cost(arch, dims or BERT_DIMS, length)


def _mobilebert_cost(arch: MobileArch, dims: ModelDims, n: int) -> dict[str, Any]:
    d, b, f, s = arch.hidden, arch.bottleneck, arch.ffn, arch.stacks
    embeddings = dims.vocab * dims.embedding + (3 * dims.embedding + 1) * d
    embeddings += (dims.positions + dims.types + 2) * d
    # Products that read the block's input, and those that read a bottleneck.
    wide, narrow = {"shared": (3, 2), "stream": (4, 0), "bottleneck": (1, 3)}[
        dims.attention_input
    ]
    norms = 2 if dims.attention_input == "shared" else 1  # one a bottleneck
    layer = (
        wide * (d + 1) * b
        + narrow * (b + 1) * b
        + (b + 1) * b  # attention output
        + s * ((b + 1) * f + (f + 1) * b)
        + (b + 1) * d
        + (norms + 1 + s) * 2 * b
        + 2 * d
    )
    layer_flops = n * ((wide + 1) * d * b + (narrow + 1) * b * b + s * 2 * b * f)
    layer_flops += 2 * n * n * b
    pooler = d + 1 if dims.pooler else 0
    return {
        "params": embeddings + arch.layers * layer + pooler * d,
        "flops": arch.layers * layer_flops
        + n * 3 * dims.embedding * d
        + (d * d if dims.pooler else 0),
        "params_paper": None,
        "flops_paper": None,
    }


def _bert_cost(arch: Arch, dims: ModelDims, n: int) -> dict[str, Any]:
    layers, hidden, ffn, width = arch.layers, arch.hidden, arch.ffn, arch.width
    e = dims.embedding or hidden
    embeddings = (dims.vocab + dims.positions + dims.types + 2) * e
    if dims.embedding:
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
    h, a, r = hidden, arch.heads / dims.reference_heads, ffn / hidden
    paper_params = (
        h * (dims.vocab + dims.positions + 4)
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
        "flops": layers * layer_flops + hidden * hidden + n * dims.embedding * hidden,
        "params_paper": round(paper_params),
        "flops_paper": round(paper_flops),
    }
