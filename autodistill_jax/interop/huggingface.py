"""Hugging Face folders: loaded as teachers, and written for students."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from autodistill_jax import multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError
from autodistill_jax.interop import hf_config, hf_weights, sentence_transformers
from autodistill_jax.interop.hf_config import is_stock, read_arch_and_dims
from autodistill_jax.interop.hub import locate_teacher
from autodistill_jax.models import build
from autodistill_jax.models.build import Params
from autodistill_jax.models.static_table import StaticTable

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MODELING_FILE = Path(__file__).with_name("modeling_elastic_bert.py")


class Teacher(NamedTuple):
    """A loaded BERT, ELECTRA, RoBERTa or MobileBERT (`dims.family`).

    Attributes:
      arch: its Arch.
      dims: its sizes that are not elastic.
      params: {name: f32 array} of the encoder, layers stacked.
      pooling: what stands for a text, see `encoder.pool_tokens`: as the folder names
        it; else "pooler", or "mean" where the weights have no pooler.
      embeds_sentences: a sentence-embedding model (its folder names the pooling).
      folder: where it came from.
      mlm_head: the masked-LM head, where the checkpoint has one, see
        `hf_weights.read_mlm_head`.
      class_names: the names of a classifier's classes, in the order of its logits,
        where they have names.
      nsp_head: the next-sentence head, where there is one, see
        `hf_weights.read_nsp_head`.
      dense: of a student that is aligned with its teacher, the linear map of its
        embedding to the teacher's, [hidden, teacher's hidden].
    """

    arch: AnyArch
    dims: ModelDims
    params: dict[str, np.ndarray]
    pooling: str
    embeds_sentences: bool
    folder: Path
    mlm_head: dict[str, np.ndarray] | None = None
    class_names: tuple[str, ...] | None = None
    nsp_head: Params | None = None
    dense: np.ndarray | None = None


def network_module(network: Teacher, **settings: Any) -> build.Module | StaticTable:
    """The module that computes a network.

    Args:
      network: loaded, or a static table, whose one parameter is its `table`.
      **settings: of `build.build_module`.

    Returns:
      A `Bert`, a `MobileBert` or a `StaticTable`.
    """
    if "table" in network.params:
        return StaticTable()
    return build.build_module(network.arch, network.dims, **settings)


def static_network(teacher: Teacher, table: np.ndarray) -> Teacher:
    """A static table of a teacher as a network of no layers.

    Args:
      teacher: its tokenizer is the table's.
      table: [V, D].

    Returns:
      The network; `table` is its one parameter, a text is the mean of its tokens.
    """
    arch = dataclasses.replace(teacher.arch, layers=0, hidden=table.shape[1])
    return Teacher(
        arch,
        teacher.dims,
        {"table": table},
        "mean",
        teacher.embeds_sentences,
        teacher.folder,
    )


def load_pretrained(name: str) -> Teacher:
    """A teacher or student by folder, packaged name or Hugging Face hub name.

    Args:
      name: see `hub.locate_teacher`.

    Returns:
      The loaded network, as a `Teacher`.

    Raises:
      UserError: no such folder, package or hub model; another model type; pickled
        weights only; a tensor that is missing or of the wrong shape; a wrong checksum.
    """
    folder = locate_teacher(name)
    arch, dims = read_arch_and_dims(folder)
    config = hf_config.read_config_json(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        _refuse_missing_weights(folder)
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {error}"
        ) from error
    pooling = sentence_transformers.read_pooling(folder)
    offset = hf_config.position_offset(config, folder / "config.json")
    params = hf_weights.params_from_tensors(tensors, arch, dims, offset, path)
    # A student of a teacher without a pooler goes out with one of zeros. A MobileBERT
    # without one was trained to speak by its first token.
    has_pooler = not dims.pooler or params["pooler_kernel"].any()
    return Teacher(
        arch,
        dims,
        params,
        pooling or ("pooler" if has_pooler else "mean"),
        pooling is not None,
        folder,
        hf_weights.read_mlm_head(tensors, dims),
        hf_config.class_names(config),
        hf_weights.read_nsp_head(tensors, dims),
        sentence_transformers.read_dense(folder),
    )


def _refuse_missing_weights(folder: Path) -> None:
    pickled = folder / "pytorch_model.bin"
    if pickled.exists():
        raise UserError(
            f"{pickled} is a pickle, which can run code when loaded; convert it once "
            'where you trust it: python -c "import torch; from safetensors.torch '
            f"import save_file; w = torch.load('{pickled}', map_location='cpu', "
            "weights_only=True); save_file({k: v.clone().contiguous() for k, v in "
            f"w.items()}}, '{folder / 'model.safetensors'}')\""
        )
    raise UserError(f"{folder} has no model.safetensors; the weights are needed there")


def save_pretrained(
    folder: epath.PathLike,
    arch: AnyArch,
    dims: ModelDims,
    params: dict,
    teacher: Path,
    pooling: str,
    embeds_sentences: bool,
    card: str,
    check: Callable[[Path], None],
    head: dict | None = None,
    dense: np.ndarray | None = None,
) -> None:
    """Writes a student as a folder that `transformers.AutoModel` loads.

    Of its teacher's family (`dims.family`). With a stock class of transformers where
    one has this shape (`is_stock`); else with a small modeling file of ours, loaded
    with trust_remote_code=True. Tokenizer files and the ids of special tokens come from
    the teacher's folder. The first process writes.

    Args:
      folder: where to, a local or remote path.
      arch: the student's Arch.
      dims: its sizes that are not elastic.
      params: {name: array} of its encoder, layers stacked.
      teacher: its teacher's folder.
      pooling: what stands for a text, "mean" or "cls"; read where it embeds sentences.
      embeds_sentences: also write what sentence-transformers reads.
      card: the text of README.md.
      check: called on the finished folder before it takes its final name.
      head: for a folder of a masked-LM head (`hf_weights.read_mlm_head`),
        ...ForMaskedLM, or of that and a next-sentence head
        (`hf_weights.read_nsp_head`) in one, ...ForPreTraining.
      dense: a linear map behind the pooling, where it embeds sentences.
    """
    from safetensors.numpy import save_file

    folder = epath.Path(folder)
    teacher_config = hf_config.read_config_json(teacher)
    config = hf_config.student_config(arch, dims, teacher_config, _MODELING_FILE.stem)
    if head:
        kind = "ForPreTraining" if "nsp_kernel" in head else "ForMaskedLM"
        config["architectures"] = [
            f"{hf_weights.FAMILIES[dims.family].class_prefix}{kind}"
        ]
    offset = hf_config.position_offset(config, folder / "config.json")
    tensors = hf_weights.tensors_from_params(params, arch, dims, offset, head)

    def write():
        with storage.atomic_write(folder, folder=True) as partial:
            metadata = {"format": "pt"}
            save_file(tensors, partial / "model.safetensors", metadata=metadata)
            if not is_stock(arch, dims):
                shutil.copy(_MODELING_FILE, partial / _MODELING_FILE.name)
            text = json.dumps(config, indent=2) + "\n"
            (partial / "config.json").write_text(text)
            for name in TOKENIZER_FILES:
                if (teacher / name).exists():
                    shutil.copy(teacher / name, partial / name)
            if embeds_sentences:
                sentence_transformers.write_modules(partial, arch, pooling, dense)
            (partial / "README.md").write_text(card)
            check(partial)

    multihost.on_first_process(write)
