"""The proxies: how good an Arch is, without fine-tuning it to the end.

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
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.errors import UserError
from autodistill_jax.models import heads
from autodistill_jax.models.build import Module
from autodistill_jax.search import proxy_programs
from autodistill_jax.search.proxy_finetune import parallel_finetune
from autodistill_jax.train import classification
from autodistill_jax.train.objective import Objective
from autodistill_jax.train.sandwich import stack_archs

# name -> what it is; lower is better for all of them.
PROXIES = {
    "agnostic": "held-out distillation loss, as trained (AutoDistil, section 3.3)",
    "proxy": "1 - dev score after a few steps on a task (AutoDistil, section 3.3)",
    "probe": "1 - dev score of a linear head on frozen embeddings of a task",
    "similarity": "1 - Spearman of held-out texts' similarities with the teacher's",
    "hidden": "1 - R2 of the teacher's hidden states, by ridge regression",
    "pooled": "held-out 1 - cosine of texts' embeddings, by the trained projection",
    "flash": "a short transfer of the Arch's own weights (Flash Distillation)",
    "relation_paper": "held-out relation loss, squared error of softmaxes",
    "relation_code": "held-out relation loss, squared error of scores",
    "relation_minilmv2": "held-out relation loss, KL of softmaxes",
}
LABELLED_PROXIES = ("proxy", "probe")
Proxy = Callable[[Sequence[AnyArch]], dict[AnyArch, dict[str, float]]]


class ProxyInputs(NamedTuple):
    """What proxies look at.

    Attributes:
      module: the SuperLM.
      params: its parameters, with its projections and heads.
      teacher: the teacher's module.
      teacher_params: its parameters, with its MLM head where the objective needs one.
      held_out: token rows, {name: [rows, ...]}.
      batch_size: rows a batch, of every evaluation.
      objective: what the SuperLM was trained on.
      mesh: the devices.
      task_data: a task's rows, for `LABELLED_PROXIES`.
      finetune_settings: the settings of `parallel_finetune`, for "proxy".
      finetune_module: the SuperLM as fine-tuning runs it, for "proxy".
      seed: of the masked tokens and of fine-tuning.
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
    """Refuses a proxy that does not exist or lacks what it needs.

    Args:
      name: of the proxy.
      field: the config field that has it, "search.proxy" or "rank.proxies".
      weights: the losses of `distill.losses`, {name: weight}.
      task: the labelled task of that stage, "" for none.

    Raises:
      UserError: there is no such proxy, or something is missing.
    """
    if name not in PROXIES:
        raise UserError(f"{field} has {name!r}; it must be one of {', '.join(PROXIES)}")
    if name == "flash" and field != "search.proxy":
        raise UserError(
            f"{field} has 'flash', which trains each Arch by itself and ranks no "
            "sub-networks of a SuperLM; take it out"
        )
    if name == "pooled" and "pooled" not in weights:
        raise UserError(
            f"{field} has 'pooled', but distill.losses has no pooled loss whose "
            "projection it could use; add the loss or take another proxy, e.g. "
            "'similarity'"
        )
    if name in LABELLED_PROXIES and not task:
        task_field = "search.proxy_task" if field == "search.proxy" else "rank.task"
        raise UserError(
            f"{field} has {name!r}, which needs a labelled task; set {task_field}, "
            "e.g. 'stsb'"
        )


def check_heldout_size(
    held_out: Mapping[str, np.ndarray], width: int, field: str
) -> None:
    """Refuses the proxy "hidden" where it had too few tokens to fit a wide network on:
    it would fit noise, and call narrow networks better.

    Args:
      held_out: token rows, {name: [rows, ...]}.
      width: the hidden size of the widest Arch.
      field: the config field that has the proxy.

    Raises:
      UserError: there are fewer than ten tokens a channel in each half.
    """
    half = int(held_out["attention_mask"].sum()) // 2
    if half < 10 * width:
        raise UserError(
            f"{field} has 'hidden', which fits {width} channels on {half} held-out "
            "tokens and needs ten a channel; take another proxy, e.g. 'agnostic', or "
            f"give it {10 * width / max(half, 1):.1f} times as many (data, and "
            "search.proxy_rows)"
        )


def make_proxy(name: str, inputs: ProxyInputs) -> Proxy:
    """The proxy of that name.

    Args:
      name: a key of `PROXIES`, not "flash".
      inputs: what it looks at.

    Returns:
      proxy(archs) -> {arch: {"proxy": lower is better, and what else is known}}.
    """
    if name == "proxy":
        return _finetune_proxy(inputs)
    if name in ("probe", "similarity", "hidden"):
        return {
            "probe": _probe_proxy,
            "similarity": _similarity_proxy,
            "hidden": _hidden_proxy,
        }[name](inputs)
    return _loss_proxy(
        inputs._replace(objective=proxy_objective(name, inputs.objective))
    )


def proxy_objective(name: str, objective: Objective) -> Objective:
    """The objective of a proxy that is a held-out loss.

    Args:
      name: of the proxy.
      objective: what was trained.

    Returns:
      The objective whose total, on held-out text, is the proxy.
    """
    if name == "pooled":
        return objective._replace(weights={"pooled": 1.0})
    if name.startswith("relation_"):
        form = name.removeprefix("relation_")
        return objective._replace(weights={"relation": 1.0}, relation_form=form)
    return objective


def _loss_proxy(inputs: ProxyInputs) -> Proxy:
    """The mean held-out distillation losses. The teacher's targets are made once a
    call, and only one batch of them is held at a time."""
    objective, vocab = inputs.objective, inputs.module.dims.vocab

    # The same tokens are masked for every Arch, in whatever batches the rows come.
    held_out = jax.tree.map(
        np.asarray,
        mask_tokens(
            jax.random.key(inputs.seed), inputs.held_out, vocab, objective.masking
        ),
    )
    of_teacher, sums = proxy_programs.loss_programs(
        inputs.module, inputs.teacher, objective
    )
    teacher_params = jax.device_put(
        inputs.teacher_params, sharding.replicated(inputs.mesh)
    )

    def proxy(archs):
        totals = {arch: [] for arch in archs}
        count = 0.0
        for rows in loader.eval_batches(held_out, inputs.batch_size):
            batch = loader.to_devices(rows, inputs.mesh)
            target = of_teacher(teacher_params, batch)
            count += float(rows["valid_rows"].sum())
            for arch in archs:
                totals[arch].append(
                    sums(inputs.params, batch, target, stack_archs([arch]))
                )
        results = {}
        for arch, parts in totals.items():
            means = {
                name: float(np.sum([part[name] for part in parts])) / count
                for name in parts[0]
            }
            results[arch] = {"proxy": means.pop("total"), **means}
        return results

    return proxy


def _outputs_fn(inputs: ProxyInputs, held_out: Mapping, pooled: bool) -> Callable:
    """outputs(arch) -> embeddings [rows, hidden], or hidden states of all real tokens
    [tokens, hidden]; of the teacher where arch is None."""
    teacher, student = proxy_programs.output_programs(
        inputs.module, inputs.teacher, inputs.objective, pooled
    )

    def outputs(arch=None):
        chunks = []
        if arch is None:
            everywhere = sharding.replicated(inputs.mesh)
            params = jax.device_put(inputs.teacher_params, everywhere)
        for rows in loader.eval_batches(held_out, inputs.batch_size):
            batch = loader.to_devices(rows, inputs.mesh)
            if arch is None:
                out = teacher(params, batch)
            else:
                out = student(inputs.params, batch, stack_archs([arch]))
            out = sharding.to_host(out)[rows["valid_rows"]]
            chunks.append(
                out if pooled else out[rows["attention_mask"][rows["valid_rows"]] > 0]
            )
        states = np.concatenate(chunks)
        return states if arch is None else states[:, : arch.hidden]

    return outputs


def _similarity_proxy(inputs: ProxyInputs) -> Proxy:
    outputs = _outputs_fn(inputs, inputs.held_out, pooled=True)
    count = len(inputs.held_out["input_ids"])
    # Each text with its ten followers: pairs enough for a steady rank correlation.
    pairs = [(i, (i + step) % count) for step in range(1, 11) for i in range(count)]
    first, second = np.asarray(pairs).T

    def cosines(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (unit[first] * unit[second]).sum(axis=1)

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


def _hidden_proxy(inputs: ProxyInputs) -> Proxy:
    from sklearn.linear_model import Ridge

    outputs = _outputs_fn(inputs, inputs.held_out, pooled=False)
    teacher_states = None

    def proxy(archs):
        nonlocal teacher_states
        if teacher_states is None:
            teacher_states = outputs()
        half = len(teacher_states) // 2
        results = {}
        for arch in archs:
            states = outputs(arch)
            regression = Ridge(alpha=1.0).fit(states[:half], teacher_states[:half])
            results[arch] = {
                "proxy": 1
                - float(regression.score(states[half:], teacher_states[half:]))
            }
        return results

    return proxy


def _probe_proxy(inputs: ProxyInputs) -> Proxy:
    task_data = inputs.task_data
    params = heads.encoder_params(inputs.params)

    @jax.jit
    def features_fn(params, batch):
        arch = jax.tree.map(lambda x: x[0], params["archs"])
        return classification.task_features(
            inputs.module,
            params["network"],
            batch,
            inputs.objective.pooling,
            task_data.classes,
            arch,
        )

    def proxy(archs):
        results = {}
        for arch in archs:
            program_params = {"network": params, "archs": stack_archs([arch])}
            score = classification.linear_probe_score(
                features_fn, program_params, task_data, inputs.batch_size, inputs.mesh
            )
            results[arch] = {"proxy": 1 - score, "score": score}
        return results

    return proxy


def _finetune_proxy(inputs: ProxyInputs) -> Proxy:
    assert inputs.finetune_module is not None
    assert inputs.task_data is not None and inputs.finetune_settings is not None
    run = parallel_finetune(
        inputs.finetune_module,
        inputs.params,
        inputs.task_data,
        inputs.finetune_settings,
        inputs.objective.pooling,
        inputs.mesh,
    )

    def proxy(archs):
        scores = run([(arch, inputs.seed) for arch in archs])
        return {
            arch: {"proxy": 1 - score, "score": score}
            for arch, score in zip(archs, scores)
        }

    return proxy
