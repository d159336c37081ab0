"""What each part of the recipe is worth: one student alone, one part changed at a time.

    python tests/benchmarks/ablations.py [--steps 300] [--seeds 3] [--data ../shared/data]
      [--workdir W] [--variants recipe,adamw]

The eighth of students.py, at equal tokens, on the same text. `distance` is 1 - cosine to
the teacher's embeddings on held-out sentences, and `distance_passages` on whole passages,
by which parts are kept or dropped; STS-B and retrieval stand beside them and choose
nothing. Goes on from its workdir when stopped. One JSON line on stdout.
"""

import argparse
import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import student_scores
import students
from etils import epath
from ml_collections import ConfigDict

import autodistill_jax as ad
from autodistill_jax import log
from autodistill_jax.archs.space import single
from autodistill_jax.data import corpus, loader
from autodistill_jax.experiment import programs, superlm, text_rows
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import embedding
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build, heads
from autodistill_jax.train import flash_distillation, loop, losses, optimizer

# What differs from the recipe, {field: value}.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "adamw": {"distill.optimizer": "adamw"},
    "adamw_1e-3": {"distill.optimizer": "adamw", "distill.learning_rate": 1e-3},
    "half_the_rate": {"distill.learning_rate": 1.4e-3},
    "twice_the_rate": {"distill.learning_rate": 5.6e-3},
    "words_trained": {"distill.freeze": ()},
    "words_frozen": {"distill.word_map": False},
    "relation_1": {"distill.losses": "pooled+3*cosine+relation"},
    "relation_3": {"distill.losses": "pooled+3*cosine+3*relation"},
    "relation_alone": {
        "distill.losses": "relation",
        "export.align": False,  # No map to the teacher's embeddings is trained.
        "search.proxy": "agnostic",
    },
    "pooled_alone": {"distill.losses": "pooled"},
    "tokens_10": {"distill.losses": "pooled+10*cosine"},
    "one_length": {"data.length_buckets": 1},
    "paper_layers": {"distill.kept_layers": "paper"},
    # What is no field of a config, see `changed_training`.
    "stable_rate": {},
    "averaged_weights": {},
    "larger_updates": {},
    "polar_express": {},
    "four_iterations": {},
    # Block by block as Flash Distillation transfers, no other loss, see `train_blocks`.
    "blocks_of_grouped_heads": {},
    "blocks_of_averaged_heads": {},
    "blocks_of_first_heads": {},
    "blocks_to_kept_layers": {},
}
# Of the held-out rows, which choices are made on; the rest is the report's.
CHOICE_ROWS = 3000
_PASSAGES, _PASSAGE_TOKENS = 256, 256
# Of the first five iterations of Polar Express (arXiv 2505.16932), divided by 1.01, 1.01^3
# and 1.01^5, so that rounding does not make them diverge.
_POLAR_EXPRESS = (
    (8.2052, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
)
_STABLE_SHARE = 0.8
_AVERAGE_DECAY = 0.98


def main() -> None:
    args = parse_args(VARIANTS, steps=300, workdir="ablations")
    sets = student_scores.read_sets(args.data)

    @functools.cache
    def teacher_documents() -> np.ndarray:
        return student_scores.embedder(ad.load_teacher(students.TEACHER))(
            sets["documents"]
        )

    def score(workdir: Path, name: str, config: ConfigDict) -> dict[str, float]:
        # What all start from is found under the recipe, whichever comes first.
        students.load_started(variant_config(args, "recipe", config.seed), workdir)
        result = ablate(workdir, name, config)
        embed_fn = student_scores.embedder(result.pop("model"))
        return result | student_scores.scores(embed_fn, sets, teacher_documents())

    run_variants(args, variant_config, score)


def parse_args(variants: Iterable[str], steps: int, workdir: str) -> argparse.Namespace:
    """The command line of a comparison of variants; what is given are its defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workdir", type=Path, default=Path(workdir))
    parser.add_argument("--variants", default=",".join(variants))
    return parser.parse_args()


def run_variants(
    args: argparse.Namespace,
    config_fn: Callable[[argparse.Namespace, str, int], ConfigDict],
    score_fn: Callable[[Path, str, ConfigDict], dict[str, float]],
) -> None:
    """Prints the mean and the deviation of each variant's figures over the seeds.

    Args:
      args: of `parse_args`.
      config_fn: (args, variant, seed) -> the config that it is trained under.
      score_fn: (workdir of a seed, the variant and the hash of its config, the config)
        -> its figures; what is there from an earlier run is not made again.
    """
    report = {}
    for variant in args.variants.split(","):
        results = []
        for seed in range(args.seeds):
            workdir = args.workdir / f"{args.steps}-{seed}"
            config = config_fn(args, variant, seed)
            name = f"{variant}-{students.config_hash(config, variant)}"
            path = workdir / f"scores-{name}.json"
            if not path.exists():
                path.write_text(json.dumps(score_fn(workdir, name, config)))
            results.append(json.loads(path.read_text()))
        report[variant] = student_scores.mean_and_deviation(results)
        log.say(f"{variant}: {report[variant]}")
    print(json.dumps(report))


def variant_config(args: argparse.Namespace, variant: str, seed: int) -> ConfigDict:
    """The config of the eighth alone, with what the variant changes of it."""
    config = students.student_config(args.data, "eighth", args.steps, seed)
    config.distill.update(steps=args.steps, finish_steps=0)
    config.search.proxy_rows = CHOICE_ROWS
    config.update_from_flattened_dict(VARIANTS[variant])
    return config


def ablate(workdir: Path, name: str, config: ConfigDict) -> dict[str, Any]:
    """A variant's network, its training seconds, and its distance to the teacher."""
    variant, steps = name.rpartition("-")[0], config.distill.steps
    experiment = students.load_started(config, workdir)
    (arch,) = experiment.affordable
    name = f"ablations/{name}"
    folder = epath.Path(workdir) / name
    remote = epath.Path(workdir)
    start_time = time.monotonic()
    if variant.startswith("blocks"):
        params = train_blocks(experiment, remote, variant, steps)
        dense, seconds = None, time.monotonic() - start_time
    else:
        with changed_training(variant):
            superlm.train_superlm(
                experiment, remote, folder, single(arch), name, variant
            )
        params = superlm.trained_params(experiment, folder, steps, name)
        dense = experiment.aligning_map(arch, params)
        seconds = log.training_seconds(remote, name)
    network = experiment.teacher._replace(
        arch=arch, params=heads.encoder_params(params), mlm_head=None, dense=dense
    )
    held_out, _ = text_rows.heldout_splits(experiment, remote)
    passages = heldout_passages(experiment)
    return {
        "model": network,
        "seconds": seconds,
        "distance": distance(experiment, network, held_out),
        "distance_passages": distance(experiment, network, held_out, passages),
    }


def heldout_passages(experiment: Experiment) -> dict[str, np.ndarray]:
    """Rows of running text out of held-out articles, far longer than a sentence."""
    data = experiment.config.data
    splits = corpus.corpus_rows(
        corpus.documents(data.source, data.packages, data.download, "chunk"),
        experiment.tokenizer,
        "chunk",
        _PASSAGE_TOKENS,
        _PASSAGES,
    )
    return splits["heldout"]


def train_blocks(
    experiment: Experiment, remote: epath.Path, variant: str, steps: int
) -> dict:
    """A block-wise transfer in as many steps, each block a part of them.

    The attention maps that are compared, where head counts differ, are those of
    `blocks_of_grouped_heads`, as many groups as divide both counts; the means over all
    heads, `blocks_of_averaged_heads`; or of the teacher the first heads, out of which
    the student's were cut, `blocks_of_first_heads`. Blocks follow the teacher's layers
    evenly spread, in `blocks_to_kept_layers` those that they were cut out of.

    Args:
      experiment: under what its text says of the teacher.
      remote: the workdir, with the text's rows.
      variant: its name.
      steps: of all blocks together.

    Returns:
      The student's parameters and projections.
    """
    (arch,), config = experiment.affordable, experiment.config
    transfer = programs.blockwise_transfer(experiment, arch)
    # Nothing behind the blocks.
    objective = transfer.objective._replace(weights={})
    if variant == "blocks_to_kept_layers":
        kept_layers = experiment.kept_layers(arch.layers)
        objective = objective._replace(layer_map=kept_layers)
    transfer = transfer._replace(objective=objective)
    settings = programs.transfer_settings(experiment)
    settings |= {"block_steps": max(steps // arch.layers, 1)}
    batches = loader.train_batches(
        text_rows.training_rows(experiment, remote),
        settings["batch_size"],
        config.seed,
        config.data.length_buckets,
    )
    of_heads = losses.attention_loss

    def of_mean_heads(student, teacher, attention_mask, groups):
        return of_heads(student, teacher, attention_mask, 1)

    def of_first_heads(student, teacher, attention_mask, groups):
        count = student.shape[1]
        return of_heads(student, teacher[:, :count], attention_mask, count)

    used = {
        "blocks_of_averaged_heads": of_mean_heads,
        "blocks_of_first_heads": of_first_heads,
    }.get(variant, of_heads)
    with mock.patch.object(losses, "attention_loss", used):
        return flash_distillation.train_blockwise(
            transfer, batches, settings, 1.0, experiment.mesh, config.seed, variant
        )


@contextlib.contextmanager
def changed_training(variant: str) -> Iterator[None]:
    """Trains otherwise inside: with another schedule, or averaging the parameters.

    `stable_rate` holds the rate for four fifths of the steps and then lets it fall to 0
    (warm-up-stable-decay); `averaged_weights` ends with the exponential moving average
    over some fifty steps (EMA). Of Muon's products, `larger_updates` has them 2.5 times
    as large, `polar_express` by other coefficients, `four_iterations` by four iterations
    for five, preconditioned. Any other variant changes nothing here.

    Args:
      variant: its name.
    """
    make_optimizer, fit = optimizer.make_optimizer, loop.fit

    def make_stable(settings, steps, axes):
        stable = round(_STABLE_SHARE * steps)
        decay = optax.linear_schedule(1.0, 0.0, max(steps - stable, 1), stable)
        tx = make_optimizer({**settings, "lr_decay": False}, steps, axes)
        return optax.chain(tx, optax.scale_by_schedule(decay))

    def fit_averaging(step, state, inputs, steps, *, save_fn, **options):
        # Copied: a step gives its arguments' memory away.
        average = jax.tree.map(jnp.array, state["params"])

        def averaging_step(state, *args):
            nonlocal average
            state, values = step(state, *args)
            average = optax.incremental_update(
                state["params"], average, 1 - _AVERAGE_DECAY
            )
            return state, values

        def save_average(done, state):
            save_fn(done, {**state, "params": average} if done == steps else state)

        return fit(
            averaging_step, state, inputs, steps, save_fn=save_average, **options
        )

    with contextlib.ExitStack() as patches:
        if variant == "stable_rate":
            patch = mock.patch.object(optimizer, "make_optimizer", make_stable)
            patches.enter_context(patch)
        if variant == "larger_updates":
            patches.enter_context(mock.patch.object(optimizer, "_MUON_RMS", 0.5))
        muon = {
            "polar_express": {"ns_coeffs": _POLAR_EXPRESS},
            "four_iterations": {"ns_steps": 4, "preconditioning": "aol"},
        }.get(variant)
        if muon:
            changed = functools.partial(optax.contrib.muon, **muon)
            patches.enter_context(mock.patch.object(optax.contrib, "muon", changed))
        if variant == "averaged_weights":
            patches.enter_context(mock.patch.object(loop, "fit", fit_averaging))
        yield


def distance(
    experiment: Experiment,
    network: Teacher,
    held_out: dict,
    passages: dict | None = None,
) -> float:
    """1 - cosine to the teacher's embeddings, the mean over one half of the rows.

    Of the best linear map of the other half, so that a loss that trains no map has one,
    too; with passages the mean is over them.
    """
    half = len(held_out["input_ids"]) // 2
    fitted_on = {k: x[:half] for k, x in held_out.items()}
    judged_on = {k: x[half:] for k, x in held_out.items()}
    models = (network, experiment.teacher)

    def embeddings(rows):
        for model in models:
            module = build.build_module(model.arch, model.dims)
            yield embedding.embed_rows(module, model.params, rows, model.pooling)

    fitted, *_ = np.linalg.lstsq(*embeddings(fitted_on), rcond=None)
    of_student, expected = embeddings(passages or judged_on)
    mapped = of_student @ fitted
    lengths = np.linalg.norm(mapped, axis=1) * np.linalg.norm(expected, axis=1)
    return float(1 - ((mapped * expected).sum(axis=1) / lengths).mean())


if __name__ == "__main__":
    main()
