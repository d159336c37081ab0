"""StableHLO of a student, to be served without autodistill_jax."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.interop import hf_config, sentence_transformers
from autodistill_jax.interop.hf_tensor_names import checkpoint_tensors
from autodistill_jax.interop.hf_weights import FAMILIES
from autodistill_jax.interop.sentence_transformers import DENSE_FILE, DENSE_TENSOR
from autodistill_jax.models import build
from autodistill_jax.models.encoder import pool_tokens

STABLEHLO_FILE = "student.stablehlo"
PLATFORMS = ("tpu", "cuda", "cpu")


def export_program(folder: Path) -> bytes:
    """The network of a student's folder as a program, for each of `PLATFORMS`.

    (weights, input_ids, attention_mask, token_type_ids) -> {last_hidden_state [batch,
    length, D] and, where the family has a pooler, pooler_output [batch, D]}, f32; of a
    student aligned with its teacher also sentence_embedding [batch, teacher's D], of
    unit length.

    weights: {tensor: f32 array}, the folder's model.safetensors as it is, and that of
    its 2_Dense. They are not
    in the program, which transposes and joins them in every pass. input_ids,
    attention_mask, token_type_ids: int32 [batch, length], as of `bert.Bert`. Both sizes
    are free, length up to the model's positions. Products at JAX's default precision:
    of f32 on CPUs, while TPUs and GPUs may round what they multiply.

    Args:
      folder: a student's finished folder.

    Returns:
      A serialized `jax.export.Exported`.
    """
    arch, dims = hf_config.read_arch_and_dims(folder)
    offset = hf_config.position_offset(
        hf_config.read_config_json(folder), folder / "config.json"
    )
    pooler = FAMILIES[dims.family].pooler
    entries = list(checkpoint_tensors(arch, dims, offset, pooler))
    module = build.build_module(arch, dims, unroll=True)
    dense = sentence_transformers.read_dense(folder)
    pooling = sentence_transformers.read_pooling(folder) or "mean"

    def run(
        weights: dict,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        token_type_ids: jax.Array,
    ) -> dict:
        params = _params_from_weights(weights, entries)
        params["embeddings_position"] = params["embeddings_position"][offset:]
        if not pooler:  # The module asks for one; nothing comes of it.
            params["pooler_kernel"] = jnp.zeros((arch.hidden, arch.hidden))
            params["pooler_bias"] = jnp.zeros(arch.hidden)
        out = module.apply(
            {"params": params}, input_ids, attention_mask, token_type_ids=token_type_ids
        )
        outputs = dict(zip(_output_names(dims), (out.hidden, out.pooler)))
        if dense is not None:
            pooled = pool_tokens(out.hidden, out.pooler, attention_mask, pooling)
            embedding = pooled @ weights[DENSE_TENSOR].T
            norm = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
            outputs["sentence_embedding"] = embedding / norm
        return outputs

    weights = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, _, shape, _ in entries
    }
    if dense is not None:
        weights[DENSE_TENSOR] = jax.ShapeDtypeStruct(dense.T.shape, jnp.float32)
    shape = export.symbolic_shape(
        "batch, length", constraints=(f"length <= {dims.positions}",)
    )
    rows = jax.ShapeDtypeStruct(shape, jnp.int32)
    with _no_source_lines():
        make = export.export(jax.jit(run), platforms=PLATFORMS)
        return bytes(make(weights, rows, rows, rows).serialize())


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """No source locations, inside: they are paths of the machine that exports."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _params_from_weights(
    weights: Mapping[str, jax.Array], entries: list[tuple]
) -> dict[str, jax.Array]:
    """`hf_weights.params_from_tensors` inside a program, for an unrolled module.

    The position table keeps its rows for padding.
    """
    params: dict[str, jax.Array] = {}
    parts_to_stack: dict[tuple[str, int], list[jax.Array]] = {}
    for tensor, parameter, _, index in entries:
        # Torch keeps Linear weights as [out, in]; ours are [in, out].
        value = weights[tensor]
        value = value.T if parameter.endswith("_kernel") else value
        layer, *inside = (None,) if index is ... else index
        name = parameter if layer is None else f"{parameter}_{layer}"
        # One of several, in their order: the last entry of its index counts them.
        if inside:
            parts_to_stack.setdefault((name, len(inside) - 1), []).append(value)
        else:
            params[name] = value
    return params | {
        name: jnp.stack(values, axis) for (name, axis), values in parts_to_stack.items()
    }


def run_program(
    program: bytes, folder: Path, batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of a program for a batch, called as `loader_snippet` tells others to.

    Args:
      program: of `export_program`.
      folder: the student's folder, whose weights it runs with.
      batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, [B, L] each.

    Returns:
      {name: array}, see `export_program`.
    """
    from safetensors.numpy import load_file

    student = jax.jit(export.deserialize(bytearray(program)).call)
    input_ids, attention_mask = (
        np.asarray(batch[name], np.int32) for name in ("input_ids", "attention_mask")
    )
    token_type_ids = np.asarray(
        batch.get("token_type_ids", np.zeros_like(input_ids)), np.int32
    )
    weights = load_file(folder / "model.safetensors")
    if (folder / DENSE_FILE).exists():
        weights |= load_file(folder / DENSE_FILE)
    out = student(
        weights,
        input_ids,
        attention_mask,
        token_type_ids,
    )
    return {name: np.asarray(value) for name, value in out.items()}


def loader_snippet(name: str, dims: ModelDims, is_aligned: bool = False) -> str:
    """Python that calls the program of a student, to be shown to a reader.

    It imports jax, numpy and safetensors, and jax imports flatbuffers.

    Args:
      name: of the student's folder.
      dims: the student's sizes that are not elastic.
      is_aligned: whether it has a 2_Dense.

    Returns:
      The lines of a script.
    """
    names = ", ".join([*_output_names(dims), *["sentence_embedding"] * is_aligned])
    dense = f' | load_file("{name}/{DENSE_FILE}")' if is_aligned else ""
    return f"""\
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

with open("{name}/{STABLEHLO_FILE}", "rb") as file:
    student = jax.jit(export.deserialize(bytearray(file.read())).call)
weights = jax.device_put(load_file("{name}/model.safetensors"){dense})
input_ids = np.zeros((2, 8), np.int32)  # [texts, at most {dims.positions} tokens].
attention_mask = np.ones_like(input_ids)  # 0: padding. Below, of types, 1: second text.
out = student(weights, input_ids, attention_mask, 0 * input_ids)  # {names}
"""


def _output_names(dims: ModelDims) -> list[str]:
    """The names of a program's outputs."""
    return ["last_hidden_state", "pooler_output"][: 1 + FAMILIES[dims.family].pooler]
