"""Job `rank`: do the proxies order Archs as fine-tuning does? Kendall's tau, measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, storage
from autodistill_jax.data.tasks import Task
from autodistill_jax.experiment import fingerprints, labelled_data, proxy_inputs
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import trained_superlm
from autodistill_jax.models import build, extract, heads
from autodistill_jax.search import proxies, ranking
from autodistill_jax.train import classification

# Below it a bootstrap over Archs says little.
_MIN_ARCHS = 24
_MAX_DRAWN_FROM = 20_000  # Archs of a space, at most.


def run_rank(
    experiment: Experiment,
    workdir: epath.Path,
    task: Task | None = None,
    stage: str = "rank",
) -> None:
    """Leaves search/rank.json: `rank.archs` Archs drawn over the whole space(s), evenly
    over bands of multiply-adds, each fine-tuned on `rank.task`; every proxy's tau with
    that quality, overall and within the bands, beside the multiply-adds' own.

    The drawn Archs need not meet the budget: they are to stand for the space.
    """
    settings = experiment.config.rank
    if not settings.archs:
        log.say(f"{stage}: off (rank.archs is 0)")
        return
    path = workdir / "search" / "rank.json"
    if common.read_rank_table(experiment.config, workdir):
        log.say(f"{stage}: done already, {path}")
        return
    grid = {}
    for home, space in experiment.spaces.items():
        archs = space.subset(_MAX_DRAWN_FROM, experiment.config.seed)
        grid = dict.fromkeys(archs, home) | grid
    flops = {arch: experiment.cost(arch)["flops"] for arch in grid}
    bands = ranking.draw_by_flops(
        flops, settings.archs, settings.flops_bins, experiment.config.seed
    )
    if len(bands) < _MIN_ARCHS:
        log.say(
            f"{stage}: only {len(bands)} Archs: with fewer than {_MIN_ARCHS} the intervals "
            "are too wide to tell proxies apart"
        )
    homes = {home: [a for a in bands if grid[a] == home] for home in experiment.spaces}
    homes = {home: archs for home, archs in homes.items() if archs}
    superlms = {home: trained_superlm(experiment, workdir, home) for home in homes}
    names = proxy_inputs.ranked_proxies(experiment.config)
    mine, theirs = _split_dev_rows(
        labelled_data.classification_data(experiment, task._replace(tests={})), names
    )
    quality = _finetuned_quality(experiment, workdir, homes, superlms, mine, stage)
    # A seed that quality has not seen: the first steps of its fine-tuning would be
    # those of the proxy.
    seed = experiment.config.seed + settings.seeds
    given = {
        home: proxy_inputs.proxy_inputs(
            experiment, workdir, home, superlms[home], theirs, seed
        )
        for home in homes
    }
    scores: dict[str, dict] = {"flops": flops}
    for name in names:
        log.say(f"{stage}: {name}: {proxies.PROXIES[name]} ...")
        scores[name] = {}
        for home, archs in homes.items():
            for arch, values in proxies.make_proxy(name, given[home])(archs).items():
                scores[name][arch] = -values["proxy"]  # More is better here.
    archs = list(bands)
    made = ranking.rank_table(
        [np.mean(quality[arch]) for arch in archs],
        {name: [values[arch] for arch in archs] for name, values in scores.items()},
        [bands[arch] for arch in archs],
    )
    storage.write_json(
        path,
        {
            "asked": fingerprints.rank_fingerprint(experiment.config),
            "task": task.name,
            "dev_rows": len(mine.dev["label"]),
            "metric": task.metric,
            "table": made,
            "archs": [
                {
                    "arch": common.arch_to_json(arch),
                    "band": bands[arch],
                    "quality": quality[arch],
                    **{name: float(values[arch]) for name, values in scores.items()},
                }
                for arch in archs
            ],
        },
    )
    for name, scopes in made.items():
        told = ", ".join(
            f"{scope} {one['tau']:.2f} [{one['interval'][0]:.2f}, "
            f"{one['interval'][1]:.2f}]"
            + (f" ({one['verdict']})" if name != "flops" else "")
            for scope, one in scopes.items()
        )
        log.say(f"{stage}: tau of {name}: {told}")
    log.say(f"{stage}: made {path}")


def _split_dev_rows(
    rows: classification.ClassificationData, names: tuple[str, ...]
) -> tuple[classification.ClassificationData, classification.ClassificationData]:
    """What quality is measured on, and what the proxies see of the task.

    Each other dev row for either where a proxy has labels: on the same rows both would
    have the same luck.
    """
    if not set(names) & set(proxies.LABELLED_PROXIES):
        return rows, rows
    mine, theirs = (
        rows._replace(dev={name: x[start::2] for name, x in rows.dev.items()})
        for start in (0, 1)
    )
    return mine, theirs


def _finetuned_quality(experiment, workdir, homes, superlms, rows, stage) -> dict:
    """{Arch: its dev scores after fine-tuning, a seed each}, as the job finetune does
    it; those there are are kept, and written as they come."""
    settings, config = experiment.config.rank, experiment.config
    asked = fingerprints.rank_fingerprint(config)["tuning"] | {
        "dev": len(rows.dev["label"])
    }
    path = workdir / "search" / f"quality-{asked['task']}.json"
    kept = {}
    if path.exists():
        found = json.loads(path.read_text())
        kept = found["quality"] if found["asked"] == asked else {}
    count = sum(len(archs) for archs in homes.values())
    done = 0
    for home, archs in homes.items():
        params = jax.tree.map(np.asarray, heads.encoder_params(superlms[home]))
        envelope = experiment.superlm_arch(experiment.spaces[home])
        for arch in archs:
            done += 1
            there = kept.setdefault(str(arch), [])
            seeds = range(config.seed + len(there), config.seed + settings.seeds)
            if not seeds:
                continue
            student = extract.extract(params, envelope, arch)
            made = classification.finetune_classifier(
                build.build_module(
                    arch,
                    experiment.dims,
                    dtype=jnp.dtype(config.finetune.compute_dtype),
                    dropout=config.finetune.dropout,
                ),
                lambda seed, student=student: student,
                rows,
                config.finetune.to_dict(),
                experiment.teacher.pooling,
                experiment.mesh,
                seeds,
                f"{stage} {done}/{count}, {arch}",
            )
            there += [max(one.scores) for one in made]
            storage.write_json(path, {"asked": asked, "quality": kept})
            told = ", ".join(f"{score:.4f}" for score in there)
            log.say(f"{stage}: {done}/{count}, {arch}: {told}")
    return {
        arch: kept[str(arch)][: settings.seeds]
        for archs in homes.values()
        for arch in archs
    }
