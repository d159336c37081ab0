"""The tensors of a checkpoint: which parameter, or part of one, each of them is."""

from collections.abc import Iterator

from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.models.mobilebert import ATTENTION_INPUTS


def checkpoint_tensors(
    arch: AnyArch, dims: ModelDims, position_offset: int, pooler: bool
) -> Iterator[tuple]:
    """The tensors of an encoder's checkpoint, without the prefix of its family.

    Torch keeps the weights of a Linear as [out, in]; ours are [in, out].

    Args:
      arch: the network's Arch.
      dims: its sizes that are not elastic.
      position_offset: leading rows of the position table that are for padding.
      pooler: whether a BERT has one; of a MobileBERT `dims.pooler` says it.

    Returns:
      (tensor's name, parameter's name, the tensor's shape, its index in the parameter)
      of each; the index is `...` where the tensor is all of the parameter.
    """
    if isinstance(arch, MobileArch):
        return _mobilebert_tensors(arch, dims)
    return _bert_tensors(arch, dims, position_offset, pooler)


def _bert_tensors(
    arch: Arch, dims: ModelDims, position_offset: int, pooler: bool
) -> Iterator[tuple]:
    d, w, f = arch.hidden, arch.width, arch.ffn
    e = dims.embedding or d
    for name, parameter, shape in (
        ("word_embeddings.weight", "word", (dims.vocab, e)),
        (
            "position_embeddings.weight",
            "position",
            (dims.positions + position_offset, e),
        ),
        ("token_type_embeddings.weight", "type", (dims.types, e)),
        ("LayerNorm.weight", "norm_scale", (e,)),
        ("LayerNorm.bias", "norm_bias", (e,)),
    ):
        yield f"embeddings.{name}", f"embeddings_{parameter}", shape, ...
    if dims.embedding:
        yield "embeddings_project.weight", "embeddings_project_kernel", (d, e), ...
        yield "embeddings_project.bias", "embeddings_project_bias", (d,), ...
    for i in range(arch.layers):
        prefix = f"encoder.layer.{i}."
        for part, name in enumerate(("query", "key", "value")):
            name = f"{prefix}attention.self.{name}"
            kernel = (i, slice(None), part)
            yield f"{name}.weight", "layers_qkv_kernel", (w, d), kernel
            yield f"{name}.bias", "layers_qkv_bias", (w,), (i, part)
        for name, parameter, shape in (
            ("attention.output.dense.weight", "attention_kernel", (d, w)),
            ("attention.output.dense.bias", "attention_bias", (d,)),
            ("attention.output.LayerNorm.weight", "attention_norm_scale", (d,)),
            ("attention.output.LayerNorm.bias", "attention_norm_bias", (d,)),
            ("intermediate.dense.weight", "ffn_in_kernel", (f, d)),
            ("intermediate.dense.bias", "ffn_in_bias", (f,)),
            ("output.dense.weight", "ffn_out_kernel", (d, f)),
            ("output.dense.bias", "ffn_out_bias", (d,)),
            ("output.LayerNorm.weight", "ffn_norm_scale", (d,)),
            ("output.LayerNorm.bias", "ffn_norm_bias", (d,)),
        ):
            yield prefix + name, f"layers_{parameter}", shape, (i,)
    if pooler:
        yield "pooler.dense.weight", "pooler_kernel", (d, d), ...
        yield "pooler.dense.bias", "pooler_bias", (d,), ...


def _mobilebert_tensors(arch: MobileArch, dims: ModelDims) -> Iterator[tuple]:
    d, w, f, e = arch.hidden, arch.bottleneck, arch.ffn, dims.embedding
    for name, parameter, shape in (
        ("word_embeddings.weight", "word", (dims.vocab, e)),
        ("embedding_transformation.weight", "trigram_kernel", (d, 3 * e)),
        ("embedding_transformation.bias", "trigram_bias", (d,)),
        ("position_embeddings.weight", "position", (dims.positions, d)),
        ("token_type_embeddings.weight", "type", (dims.types, d)),
        ("LayerNorm.weight", "norm_scale", (d,)),
        ("LayerNorm.bias", "norm_bias", (d,)),
    ):
        yield f"embeddings.{name}", f"embeddings_{parameter}", shape, ...
    # The names of what a block's two products make, see `mobilebert.ATTENTION_INPUTS`.
    projection_names = {
        "input": "bottleneck.input.dense",
        "keys": "bottleneck.attention.dense",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
    }
    for i in range(arch.layers):
        prefix = f"encoder.layer.{i}."
        for product, parts, width in zip(
            ("first", "second"), ATTENTION_INPUTS[dims.attention_input], (d, w)
        ):
            for part, name in enumerate(parts):
                tensor = prefix + projection_names[name]
                kernel = (i, slice(None), part)
                yield f"{tensor}.weight", f"layers_{product}_kernel", (w, width), kernel
                yield f"{tensor}.bias", f"layers_{product}_bias", (w,), (i, part)
                if name in ("input", "keys"):
                    norm = tensor.replace("dense", "LayerNorm")
                    yield f"{norm}.weight", "layers_first_norm_scale", (w,), (i, part)
                    yield f"{norm}.bias", "layers_first_norm_bias", (w,), (i, part)
        for name, parameter, shape in (
            ("attention.output.dense.weight", "attention_kernel", (w, w)),
            ("attention.output.dense.bias", "attention_bias", (w,)),
            ("attention.output.LayerNorm.weight", "attention_norm_scale", (w,)),
            ("attention.output.LayerNorm.bias", "attention_norm_bias", (w,)),
            ("output.bottleneck.dense.weight", "out_kernel", (d, w)),
            ("output.bottleneck.dense.bias", "out_bias", (d,)),
            ("output.bottleneck.LayerNorm.weight", "out_norm_scale", (d,)),
            ("output.bottleneck.LayerNorm.bias", "out_norm_bias", (d,)),
        ):
            yield prefix + name, f"layers_{parameter}", shape, (i,)
        for stack in range(arch.stacks):
            # The last of the ffns bears the names of a BERT's only one.
            ffn = prefix if stack == arch.stacks - 1 else f"{prefix}ffn.{stack}."
            for name, parameter, shape in (
                ("intermediate.dense.weight", "in_kernel", (f, w)),
                ("intermediate.dense.bias", "in_bias", (f,)),
                ("output.dense.weight", "out_kernel", (w, f)),
                ("output.dense.bias", "out_bias", (w,)),
                ("output.LayerNorm.weight", "norm_scale", (w,)),
                ("output.LayerNorm.bias", "norm_bias", (w,)),
            ):
                yield ffn + name, f"layers_ffn_{parameter}", shape, (i, stack)
    if dims.pooler:
        yield "pooler.dense.weight", "pooler_kernel", (d, d), ...
        yield "pooler.dense.bias", "pooler_bias", (d,), ...
