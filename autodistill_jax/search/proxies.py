"""How good is an Arch, without fine-tuning it to the end? Proxies by name.

All but `proxy` and `probe` need no labels. A sub-network keeps the weights that it has
in the SuperLM, and all Archs share one compiled program.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from autodistill_jax import metrics, sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.models import heads
from autodistill_jax.models.build import Module
from autodistill_jax.search import proxy_programs
from autodistill_jax.search.proxy_finetune import parallel_finetune
from autodistill_jax.train import classification, distillation
from autodistill_jax.train.objective import Objective
from autodistill_jax.train.sandwich import stack_archs

# name -> what it is; lower is better for all of them.
PROXIES = {
    "agnostic": "held-out distillation loss, as trained (AutoDistil, section 3.3)",
    "proxy": "1 - dev score after a few steps on a task (AutoDistil, section 3.3)",
    "probe": "1 - dev score of a linear head on frozen embeddings of a task",
    "similarity": "1 - Spearman of held-out texts' similarities with the teacher's",
    "hidden": "1 - R2 of the teacher's hidden states, by ridge regression",
    "pooled": "held-out 1 - cosine of texts' embeddings, by the trained matcher",
    "flash": "a short transfer of the Arch's own weights (Flash Distillation)",
    "relation_paper": "held-out relation loss, squared error of softmaxes",
    "relation_code": "held-out relation loss, squared error of scores",
    "relation_minilmv2": "held-out relation loss, KL of softmaxes",
}
LABELLED_PROXIES = ("proxy", "probe")
Proxy = Callable[[Sequence[AnyArch]], dict[AnyArch, dict[str, float]]]


class ProxyInputs(NamedTuple):
    """What proxies look at.

    module, params: the SuperLM (with its matchers). teacher, teacher_params: with its
    masked-word head where the objective needs one. held_out: token rows. labelled: a
    task's rows, for the LABELLED ones; tuning, tuned_module: of `tuned` for "proxy".
    """

    module: Module
    params: dict
    teacher: Module
    teacher_params: dict
    held_out: Mapping[str, np.ndarray]
    batch_size: int
    objective: Objective
    mesh: jax.sharding.Mesh
    task_data: classification.ClassificationData | None = None
    finetune_settings: Mapping[str, Any] | None = None
    finetune_module: Module | None = None
    seed: int = 0


def check_proxy(name: str, field: str, weights: Mapping[str, float], task: str) -> None:
    """Raises UserError if there is no such proxy, or it lacks what it needs."""
    if name not in PROXIES:
        raise UserError(f"{field} has {name!r}; it must be one of {', '.join(PROXIES)}")
    if name == "flash" and field != "search.proxy":
        raise UserError(
            f"{field} has 'flash', which trains each Arch by itself and ranks no "
            "sub-networks of a SuperLM; take it out"
        )
    if name == "pooled" and "pooled" not in weights:
        raise UserError(
            f"{field} has 'pooled', but distill.losses has no pooled term whose matcher "
            "it could use; add the term or take another proxy, e.g. 'similarity'"
        )
    if name in LABELLED_PROXIES and not task:
        raise UserError(
            f"{field} has {name!r}, which needs a labelled task; set "
            f"{field.split('.')[0]}.task, e.g. 'stsb'"
        )


def check_heldout_size(
    held_out: Mapping[str, np.ndarray], width: int, field: str
) -> None:
    """Raises UserError if "hidden" had too few tokens to fit so wide a network on: it
    would fit noise, and call narrow networks better."""
    half = int(held_out["attention_mask"].sum()) // 2
    if half < 10 * width:
        raise UserError(
            f"{field} has 'hidden', which fits {width} channels on {half} held-out "
            "tokens and needs ten a channel; take another proxy, e.g. 'agnostic', or "
            f"give it {10 * width / max(half, 1):.1f} times as many (data, and search.proxy_rows)"
        )


def make_proxy(name: str, given: ProxyInputs) -> Proxy:
    """proxy(archs) -> {arch: {"proxy": lower is better, and what else is known}}."""
    if name == "proxy":
        return _finetune_proxy(given)
    if name in ("probe", "similarity", "hidden"):
        return {
            "probe": _probe_proxy,
            "similarity": _similarity_proxy,
            "hidden": _hidden_proxy,
        }[name](given)
    return _loss_proxy(given._replace(objective=proxy_objective(name, given.objective)))


def proxy_objective(name: str, objective: Objective) -> Objective:
    """What a proxy that is a held-out loss takes of the terms that were trained."""
    if name == "pooled":
        return objective._replace(weights={"pooled": 1.0})
    if name.startswith("relation_"):
        form = name.removeprefix("relation_")
        return objective._replace(weights={"relation": 1.0}, relation_form=form)
    return objective


def _loss_proxy(given: ProxyInputs) -> Proxy:
    """The mean held-out distillation terms; the teacher's targets are made once a call,
    and only one batch of them is held at a time."""
    objective, vocab = given.objective, given.module.dims.vocab

    # The same words are hidden for every Arch, in whatever batches the rows come.
    held_out = jax.tree.map(
        np.asarray,
        dict(
            distillation.shown(
                given.held_out, objective, vocab, jax.random.key(given.seed)
            )
        ),
    )
    of_teacher, sums = proxy_programs.loss_programs(
        given.module, given.teacher, objective
    )
    teacher_params = jax.device_put(
        given.teacher_params, sharding.replicated(given.mesh)
    )

    def proxy(archs):
        totals = {arch: [] for arch in archs}
        count = 0.0
        for rows in loader.eval_batches(held_out, given.batch_size):
            batch = loader.to_devices(rows, given.mesh)
            target = of_teacher(teacher_params, batch)
            count += float(rows["valid_rows"].sum())
            for arch in archs:
                made = sums(given.params, batch, target, stack_archs([arch]))
                totals[arch].append(made)
        made = {}
        for arch, parts in totals.items():
            means = {
                name: float(np.sum([part[name] for part in parts])) / count
                for name in parts[0]
            }
            made[arch] = {"proxy": means.pop("total"), **means}
        return made

    return proxy


def _outputs_fn(given: ProxyInputs, side: Mapping, pooled: bool) -> Callable:
    """outputs(arch) -> embeddings [rows, hidden], or hidden states of all real tokens
    [tokens, hidden]; of the teacher where arch is None."""
    teacher, student = proxy_programs.output_programs(
        given.module, given.teacher, given.objective, pooled
    )

    def outputs(arch=None):
        made = []
        if arch is None:
            everywhere = sharding.replicated(given.mesh)
            params = jax.device_put(given.teacher_params, everywhere)
        for rows in loader.eval_batches(side, given.batch_size):
            batch = loader.to_devices(rows, given.mesh)
            if arch is None:
                out = teacher(params, batch)
            else:
                out = student(given.params, batch, stack_archs([arch]))
            out = sharding.to_host(out)[rows["valid_rows"]]
            made.append(
                out if pooled else out[rows["attention_mask"][rows["valid_rows"]] > 0]
            )
        made = np.concatenate(made)
        return made if arch is None else made[:, : arch.hidden]

    return outputs


def _similarity_proxy(given: ProxyInputs) -> Proxy:
    outputs = _outputs_fn(given, given.held_out, pooled=True)
    count = len(given.held_out["input_ids"])
    # Each text with its ten followers: pairs enough for a steady rank correlation.
    pairs = [(i, (i + step) % count) for step in range(1, 11) for i in range(count)]
    one, other = np.asarray(pairs).T

    def cosines(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (unit[one] * unit[other]).sum(axis=1)

    reference = None

    def proxy(archs):
        nonlocal reference
        if reference is None:
            reference = cosines(outputs())
        return {
            arch: {"proxy": 1 - metrics.spearman(reference, cosines(outputs(arch)))}
            for arch in archs
        }

    return proxy


def _hidden_proxy(given: ProxyInputs) -> Proxy:
    from sklearn.linear_model import Ridge

    outputs = _outputs_fn(given, given.held_out, pooled=False)
    wanted = None

    def proxy(archs):
        nonlocal wanted
        if wanted is None:
            wanted = outputs()
        half = len(wanted) // 2
        made = {}
        for arch in archs:
            states = outputs(arch)
            line = Ridge(alpha=1.0).fit(states[:half], wanted[:half])
            made[arch] = {"proxy": 1 - float(line.score(states[half:], wanted[half:]))}
        return made

    return proxy


def _probe_proxy(given: ProxyInputs) -> Proxy:
    rows = given.task_data
    params = heads.encoder_params(given.params)

    @jax.jit
    def read(params, batch):
        arch = jax.tree.map(lambda x: x[0], params["archs"])
        return classification.task_features(
            given.module,
            params["network"],
            batch,
            given.objective.pooling,
            rows.classes,
            arch,
        )

    def proxy(archs):
        made = {}
        for arch in archs:
            both = {"network": params, "archs": stack_archs([arch])}
            score = classification.linear_probe_score(
                read, both, rows, given.batch_size, given.mesh
            )
            made[arch] = {"proxy": 1 - score, "score": score}
        return made

    return proxy


def _finetune_proxy(given: ProxyInputs) -> Proxy:
    run = parallel_finetune(
        given.finetune_module,
        given.params,
        given.task_data,
        given.finetune_settings,
        given.objective.pooling,
        given.mesh,
    )

    def proxy(archs):
        scores = run([(arch, given.seed) for arch in archs])
        return {
            arch: {"proxy": 1 - score, "score": score}
            for arch, score in zip(archs, scores)
        }

    return proxy
