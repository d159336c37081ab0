"""Job `export`: the chosen sub-network -> a folder that Hugging Face loads, and serves."""

import contextlib
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, metrics, multihost, sharding, storage
from autodistill_jax.archs.arch import describe
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import fingerprints
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import trained_superlm
from autodistill_jax.experiment.text_rows import heldout_splits
from autodistill_jax.interop import hf_config, hf_parity, huggingface, stablehlo
from autodistill_jax.latency import table
from autodistill_jax.models import build, extract, heads
from autodistill_jax.train import losses, sandwich

_TOLERANCE = 1e-4


def run_export(
    experiment: Experiment, workdir: epath.Path, stage: str = "export"
) -> None:
    """Leaves students/<name>/, checked by equal outputs, and its similarity.json."""
    found = common.read_front(experiment.config, workdir)
    for arch in common.student_archs(experiment.config, found):
        home, weights = common.find_trial(found, arch)["space"], None
        done = _is_exported(experiment.config, workdir / "students" / arch.name)
        if not done and experiment.config.search.proxy != "flash":
            # Off the mesh: what follows is the first process' alone.
            weights = heads.encoder_params(trained_superlm(experiment, workdir, home))
            weights = jax.tree.map(sharding.to_host, weights)
        one = functools.partial(
            _export_student, experiment, workdir, found, arch, weights, stage
        )
        multihost.on_first_process(one)


def _export_student(experiment, workdir, found, arch, weights, stage) -> None:
    folder = workdir / "students" / arch.name
    if _is_exported(experiment.config, folder):
        if not (folder / stablehlo.STABLEHLO_FILE).exists():
            sample = _sample_rows(heldout_splits(experiment, workdir)[1])
            made = _checked_program(storage.local_copy(folder), sample, stage)
            with storage.atomic_write(folder / stablehlo.STABLEHLO_FILE) as one:
                one.write_bytes(made)
        # A later search may have taken its latency anew, or for another target.
        similarity = json.loads((folder / "similarity.json").read_text())
        card = _model_card(experiment, arch, found, similarity)
        storage.write_text(folder / "README.md", card)
        log.say(f"{stage}: done already, {folder}")
        return
    if experiment.config.search.proxy == "flash":
        student = _transferred_params(experiment.config, workdir, arch)
        inside = functools.partial(_student_outputs, experiment, arch, student)
    else:
        space = experiment.spaces[common.find_trial(found, arch)["space"]]
        student = extract.extract(weights, experiment.superlm_arch(space), arch)
        inside = functools.partial(
            _subnetwork_outputs, experiment, space, weights, arch
        )
    judged_on = heldout_splits(experiment, workdir)[1]
    log.say(f"{stage}: comparing similarities with the teacher's ...")
    similarity = _similarities(experiment, judged_on, arch, student)
    log.say(
        f"{stage}: agreement with the teacher's similarities: student "
        f"{similarity['student']:.3f}, the same Arch before distillation "
        f"{similarity['truncated']:.3f}"
    )
    if similarity["student"] <= similarity["truncated"]:
        log.say(f"{stage}: distillation did not help this student; train it longer")
    sample = _sample_rows(judged_on)
    with _cpu_precision():
        expected = inside(sample)

    def check(partial: Path) -> None:
        error, by = _max_difference(partial, arch, expected, sample)
        log.say(
            f"{stage}: outputs differ by at most {error:.1e} after reloading by {by}"
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
        _model_card(experiment, arch, found, similarity),
        check,
    )
    storage.write_json(folder / "similarity.json", similarity)
    log.say(f"{stage}: made {folder}")


def _similarities(experiment, held_out, arch, student) -> dict:
    """Spearman of the cosines of held-out pairs with the teacher's own, student and
    truncated slice ("truncated": the same Arch before distillation)."""
    wanted = experiment.config.export.pairs
    pairs = min(wanted, len(held_out["input_ids"]) // 2)
    if pairs < wanted:
        log.say(f"only {pairs} of {wanted} pairs: there is no more held-out text")
    rng = np.random.default_rng(experiment.config.seed)
    pick = rng.choice(len(held_out["input_ids"]), 2 * pairs, replace=False)
    texts = {name: value[pick] for name, value in held_out.items()}
    teacher = experiment.teacher
    there, params = experiment.initial_params
    truncated = extract.extract(params, there, arch)

    def cosines(module, params):
        @jax.jit
        def embed(params, batch):
            out = _apply_module(module, params, batch)
            return losses.pool_tokens(
                out.hidden, out.pooler, batch["attention_mask"], teacher.pooling
            )

        made = [
            np.asarray(embed(params, batch))
            for batch in loader.eval_batches(texts, min(100, 2 * pairs))
        ]
        made = jnp.asarray(np.concatenate(made)[: 2 * pairs])
        return np.asarray(losses.cosine(made[:pairs], made[pairs:]))

    reference = cosines(build.build_module(teacher.arch, teacher.dims), teacher.params)
    module = build.build_module(arch, experiment.dims)
    return {
        "origin": fingerprints.weight_source(experiment.config),
        "pairs": pairs,
        "seed": experiment.config.seed,
        "student": metrics.spearman(reference, cosines(module, student)),
        "truncated": metrics.spearman(reference, cosines(module, truncated)),
        "teacher": 1.0,
    }


def _is_exported(config, folder) -> bool:
    """Is the student there, and of the weights that are asked for?"""
    path = folder / "similarity.json"
    if not path.exists():
        return False
    there = json.loads(path.read_text()).get("origin", "superlm")
    return there == fingerprints.weight_source(config)


def _transferred_params(config, workdir, arch) -> dict:
    path = common.transfer_path(config, workdir, arch)
    if not path.exists():
        raise UserError(f"{path} is not there; run the job transfer first")
    return storage.read_arrays(path)


def _student_outputs(experiment, arch, student, sample) -> np.ndarray:
    """A student's own output, before it is written."""
    module = build.build_module(arch, experiment.dims)
    return np.asarray(_apply_module(module, student, sample).hidden)


def _subnetwork_outputs(experiment, space, weights, arch, sample) -> np.ndarray:
    """The sub-network's own output, inside the SuperLM."""
    superlm = experiment.superlm(space).clone(dtype=jnp.float32, dropout=0.0, mesh=None)
    one = jax.tree.map(lambda x: x[0], sandwich.stack_archs([arch]))
    out = jax.jit(lambda p, a: _apply_module(superlm, p, sample, a))(weights, one)
    return np.asarray(out.hidden)[..., : arch.hidden]


def _apply_module(module, params, batch, *arch):
    return module.apply(
        {"params": params},
        batch["input_ids"],
        batch["attention_mask"],
        *arch,
        token_type_ids=batch.get("token_type_ids"),
    )


def _max_difference(folder: Path, arch, inside, sample) -> tuple[float, str]:
    """The largest difference at real tokens between sub-network and written student,
    loaded by us, and by transformers where it is installed with torch; and by whom."""
    real = sample["attention_mask"].astype(bool)
    again = huggingface.load_pretrained(str(folder))
    module = build.build_module(again.arch, again.dims)
    with _cpu_precision():
        out = _apply_module(module, again.params, sample)
    error = np.abs(np.asarray(out.hidden) - inside)[real].max()
    theirs = hf_parity.transformers_outputs(
        folder, sample, remote=not hf_config.is_stock(arch, again.dims)
    )
    if theirs is None:
        return float(error), hf_parity.NOT_INSTALLED
    theirs = theirs.last_hidden_state.numpy()
    error = max(error, np.abs(theirs - inside)[real].max())
    return float(error), "transformers"


def _cpu_precision():
    """On a CPU, if JAX may use one: TPUs and GPUs round float32 that they multiply."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _checked_program(folder: Path, sample, stage) -> bytes:
    """The program that serves a student, once it was run: its outputs at real tokens are
    those of the network that we load from the folder."""
    real = sample["attention_mask"].astype(bool)
    again = huggingface.load_pretrained(str(folder))
    module = build.build_module(again.arch, again.dims)
    made = stablehlo.export_program(folder)
    with _cpu_precision():
        wanted = _apply_module(module, again.params, sample)
        out = stablehlo.run_program(made, folder, sample)
    error = np.abs(out["last_hidden_state"] - np.asarray(wanted.hidden))[real].max()
    if "pooler_output" in out:
        pooled = np.abs(out["pooler_output"] - np.asarray(wanted.pooler)).max()
        error = max(error, pooled)
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"the outputs of {stablehlo.STABLEHLO_FILE} differ by {error}, over {_TOLERANCE}"
        )
    log.say(
        f"{stage}: {stablehlo.STABLEHLO_FILE} for {', '.join(stablehlo.PLATFORMS)}, "
        f"{len(made) / 1000:.0f} kB; its outputs differ by at most {error:.1e}"
    )
    return made


def _sample_rows(rows) -> dict:
    """The few texts that outputs are compared on."""
    return {name: value[:4] for name, value in rows.items()}


def _model_card(experiment, arch, found, similarity) -> str:
    """The model card: what it is, what it costs, how to load it."""
    trial = common.find_trial(found, arch)
    teacher, how = found["teacher"], found["latency"]
    dims = experiment.dims
    remote = "" if hf_config.is_stock(arch, dims) else ", trust_remote_code=True"

    def line(name, key, scale, unit, digits):
        mine, full = trial.get(key), teacher[key]
        told = f"{mine / scale:.{digits}f} {unit}" if mine is not None else "not taken"
        share = f"{mine / full:.0%}" if mine is not None else ""
        return f"| {name} | {told} | {full / scale:.{digits}f} {unit} | {share} |"

    rows = "\n".join(
        [
            line("parameters", "params", 1e6, "M", 2),
            line(f"multiply-adds, {how['length']} tokens", "flops", 1e9, "G", 3),
            line(f"latency, {how['source']}", "latency_ms", 1, "ms", 2),
        ]
    )
    return f"""---
library_name: transformers
tags: [{dims.family}, distillation, autodistill_jax]
---

# {arch.name}

A model of type {dims.family}: {describe(arch)}; distilled by autodistill_jax from
{experiment.teacher_name}.

| | student | teacher | share |
|---|---|---|---|
{rows}

Latency: {table.describe_conditions(how)}.
Agreement of its text similarities with the teacher's (Spearman, {similarity["pairs"]}
held-out pairs): {similarity["student"]:.3f}; the same Arch before this distillation:
{similarity["truncated"]:.3f}.

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{arch.name}"{remote})
tokenizer = AutoTokenizer.from_pretrained("{arch.name}"{remote})
```

To serve it, `{stablehlo.STABLEHLO_FILE}` is the network as StableHLO for
{", ".join(stablehlo.PLATFORMS)}, without its weights, which stand in `model.safetensors`.
It wants `pip install jax safetensors flatbuffers` and nothing of autodistill_jax:

```python
{stablehlo.loader_snippet(arch.name, dims)}```

Each new shape is compiled once; a text that is too long is a ValueError ("Error refining
shapes"). The jax that reads the file must be as new as the one that wrote it, and at most
half a year newer by jax's promise; to make it anew, delete it and run the job `export`
again. `export.deserialize(...).mlir_module()` is its text, for others than JAX.
"""
