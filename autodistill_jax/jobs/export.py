"""Job `export`: the chosen sub-network -> a folder that Hugging Face loads."""

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import fingerprints
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.similarity import similarity_agreement
from autodistill_jax.experiment.superlm import finished_student, trained_superlm
from autodistill_jax.experiment.text_rows import heldout_splits
from autodistill_jax.experiment.workdir import (
    find_trial,
    read_front,
    student_archs,
    transfer_path,
)
from autodistill_jax.interop import hf_config, hf_parity, huggingface, stablehlo
from autodistill_jax.models import build, heads
from autodistill_jax.report.model_card import model_card
from autodistill_jax.train import sandwich

_TOLERANCE = 1e-4

_Rows = Mapping[str, np.ndarray]  # token rows, [N, L] each


def run_export(
    experiment: Experiment, workdir: epath.Path, stage: str = "export"
) -> None:
    """Leaves students/<name>/, checked by equal outputs, and its similarity.json.

    Args:
      experiment: whose students are written; those that are there already get their
        model card anew, and no more.
      workdir: with the front.json of the job search and the weights of distill or
        transfer.
      stage: what log lines begin with.

    Raises:
      UserError: the search, the SuperLM or the transfer is not done.
      RuntimeError: a written student's outputs are not the sub-network's.
    """
    front = read_front(experiment.config, workdir)
    for arch in student_archs(experiment.config, front):
        space, weights = find_trial(front, arch)["space"], None
        done = _is_exported(experiment.config, workdir / "students" / arch.name)
        finished = None
        if not done and experiment.config.search.proxy != "flash":
            # Off the mesh: what follows is the first process' alone.
            weights = _off_mesh(trained_superlm(experiment, workdir, space))
            if experiment.config.distill.finish_steps:
                finished = _off_mesh(finished_student(experiment, workdir, arch))
        export_student = functools.partial(
            _export_student, experiment, workdir, front, arch, weights, finished, stage
        )
        multihost.on_first_process(export_student)


def _export_student(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    arch: AnyArch,
    weights: dict | None,
    finished: dict | None,
    stage: str,
) -> None:
    """One student's folder.

    Args:
      weights: the SuperLM's with its projections, where it is cut from one.
      finished: the student's own with its projections, where it was then trained alone.
    """
    folder = workdir / "students" / arch.name
    if _is_exported(experiment.config, folder):
        _update_exported(experiment, workdir, front, arch, folder, stage)
        return
    if experiment.config.search.proxy == "flash":
        student = _transferred_params(experiment.config, workdir, arch)
        reference_outputs = functools.partial(
            _student_outputs, experiment, arch, student
        )
    else:
        space = experiment.spaces[find_trial(front, arch)["space"]]
        encoder_weights = heads.encoder_params(weights)
        student = experiment.extract_student(space, encoder_weights, arch)
        reference_outputs = functools.partial(
            _subnetwork_outputs, experiment, space, encoder_weights, arch
        )
    dense = experiment.aligning_map(arch, finished or weights or {})
    start_params = experiment.start_params(arch)
    networks = {"truncated": (start_params, experiment.fitted_map(arch, start_params))}
    if finished is not None:
        before_dense = experiment.aligning_map(arch, weights or {})
        networks["before_finish"] = (student, before_dense)
        student = heads.encoder_params(finished)
        reference_outputs = functools.partial(
            _student_outputs, experiment, arch, student
        )
    networks["student"] = (student, dense)
    held_out = heldout_splits(experiment, workdir)[1]
    log.say(f"{stage}: comparing similarities with the teacher's ...")
    similarity = {
        "origin": fingerprints.weight_source(experiment.config),
        **similarity_agreement(experiment, held_out, arch, networks),
    }
    log.say(
        f"{stage}: agreement with the teacher's similarities: student "
        f"{similarity['student']:.3f}, the same Arch before distillation "
        f"{similarity['truncated']:.3f}"
    )
    if similarity["student"] <= similarity["truncated"]:
        log.say(f"{stage}: distillation did not help this student; train it longer")
    sample = _sample_rows(held_out)
    with _cpu_precision():
        expected = reference_outputs(sample)

    def check(partial: Path) -> None:
        error, loaders = _max_difference(partial, arch, expected, sample)
        log.say(
            f"{stage}: outputs differ by at most {error:.1e} after reloading by "
            f"{loaders}"
        )
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the exported student's outputs differ by {error}, over {_TOLERANCE}"
            )
        (partial / stablehlo.STABLEHLO_FILE).write_bytes(
            _checked_program(partial, sample, stage)
        )

    huggingface.save_pretrained(
        folder,
        arch,
        experiment.dims,
        jax.tree.map(np.asarray, student),
        experiment.teacher.folder,
        experiment.teacher.pooling,
        experiment.teacher.embeds_sentences,
        model_card(experiment, arch, front, similarity),
        check,
        dense=dense,
    )
    storage.write_json(folder / "similarity.json", similarity)
    log.say(f"{stage}: made {folder}")


def _update_exported(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    arch: AnyArch,
    folder: epath.Path,
    stage: str,
) -> None:
    """A new model card, and the serving program where it was deleted."""
    if not (folder / stablehlo.STABLEHLO_FILE).exists():
        sample = _sample_rows(heldout_splits(experiment, workdir)[1])
        program = _checked_program(storage.local_copy(folder), sample, stage)
        with storage.atomic_write(folder / stablehlo.STABLEHLO_FILE) as path:
            path.write_bytes(program)
    # A later search may have taken its latency anew, or for another target.
    similarity = json.loads((folder / "similarity.json").read_text())
    card = model_card(experiment, arch, front, similarity)
    storage.write_text(folder / "README.md", card)
    log.say(f"{stage}: done already, {folder}")


def _off_mesh(params: dict) -> dict:
    """Parameters on the host."""
    return jax.tree.map(sharding.to_host, params)


def _is_exported(config, folder) -> bool:
    """Is the student there, and of the weights that are asked for?"""
    path = folder / "similarity.json"
    if not path.exists():
        return False
    source = json.loads(path.read_text()).get("origin", "superlm")
    return source == fingerprints.weight_source(config)


def _transferred_params(config, workdir, arch) -> dict:
    path = transfer_path(config, workdir, arch)
    if not path.exists():
        raise UserError(f"{path} is not there; run the job transfer first")
    return storage.read_arrays(path)


def _student_outputs(
    experiment: Experiment, arch: AnyArch, student: dict, sample: _Rows
) -> np.ndarray:
    """A student's own output, [B, L, D], before it is written."""
    module = build.build_module(arch, experiment.dims)
    return np.asarray(build.apply_module(module, student, sample).hidden)


def _subnetwork_outputs(
    experiment: Experiment, space: Space, weights: dict, arch: AnyArch, sample: _Rows
) -> np.ndarray:
    """The sub-network's own output, [B, L, D], inside the SuperLM."""
    superlm = experiment.superlm(space).clone(dtype=jnp.float32, dropout=0.0, mesh=None)
    sizes = jax.tree.map(lambda x: x[0], sandwich.stack_archs([arch]))
    out = jax.jit(lambda p, a: build.apply_module(superlm, p, sample, a))(
        weights, sizes
    )
    return np.asarray(out.hidden)[..., : arch.hidden]


def _max_difference(
    folder: Path, arch: AnyArch, expected: np.ndarray, sample: _Rows
) -> tuple[float, str]:
    """The largest difference at real tokens between sub-network and written student,
    loaded by us, and by transformers where it is installed with torch; and by whom."""
    real = sample["attention_mask"].astype(bool)
    reloaded = huggingface.load_pretrained(str(folder))
    module = build.build_module(reloaded.arch, reloaded.dims)
    with _cpu_precision():
        out = build.apply_module(module, reloaded.params, sample)
    error = np.abs(np.asarray(out.hidden) - expected)[real].max()
    hf_outputs = hf_parity.transformers_outputs(
        folder, sample, trust_remote_code=not hf_config.is_stock(arch, reloaded.dims)
    )
    if hf_outputs is None:
        return float(error), hf_parity.NOT_INSTALLED
    hf_outputs = hf_outputs.last_hidden_state.numpy()
    error = max(error, np.abs(hf_outputs - expected)[real].max())
    return float(error), "transformers"


def _cpu_precision():
    """On a CPU, if JAX may use one: TPUs and GPUs round float32 that they multiply."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _checked_program(folder: Path, sample, stage) -> bytes:
    """The program that serves a student, once it was run: its outputs at real tokens
    are those of the network that we load from the folder."""
    real = sample["attention_mask"].astype(bool)
    reloaded = huggingface.load_pretrained(str(folder))
    module = build.build_module(reloaded.arch, reloaded.dims)
    program = stablehlo.export_program(folder)
    with _cpu_precision():
        expected = build.apply_module(module, reloaded.params, sample)
        out = stablehlo.run_program(program, folder, sample)
    error = np.abs(out["last_hidden_state"] - np.asarray(expected.hidden))[real].max()
    if "pooler_output" in out:
        pooled = np.abs(out["pooler_output"] - np.asarray(expected.pooler)).max()
        error = max(error, pooled)
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"the outputs of {stablehlo.STABLEHLO_FILE} differ by {error}, over "
            f"{_TOLERANCE}"
        )
    log.say(
        f"{stage}: {stablehlo.STABLEHLO_FILE} for {', '.join(stablehlo.PLATFORMS)}, "
        f"{len(program) / 1000:.0f} kB; its outputs differ by at most {error:.1e}"
    )
    return program


def _sample_rows(rows) -> dict:
    """The few texts that outputs are compared on."""
    return {name: value[:4] for name, value in rows.items()}
