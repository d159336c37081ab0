"""A config checked before any work, and the experiment that it describes."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import sharding
from autodistill_jax.archs import published
from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch, nearest_arch
from autodistill_jax.archs.budget import AffordableArchs, parse_budgets
from autodistill_jax.archs.cost import ModelDims, student_dims
from autodistill_jax.archs.space import Space
from autodistill_jax.data import corpus, tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import schema
from autodistill_jax.experiment.experiment import Experiment, TeacherSide
from autodistill_jax.experiment.teacher import load_teachers
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract
from autodistill_jax.pruning.depth import named_layers
from autodistill_jax.train.objective import Objective, parse_objective


def load_experiment(
    config: ConfigDict, workdir: epath.Path | None = None
) -> Experiment:
    """Checks a config before any work and loads its teacher.

    Args:
      config: with all flags in it.
      workdir: where a pre-trained teacher may lie, see `teacher.load_teachers`.

    Returns:
      The experiment, complete.

    Raises:
      UserError: whatever cannot work, in one line.
    """
    if config.pretrain.arch and not config.pretrain.steps:
        raise UserError(
            f"pretrain.arch is {config.pretrain.arch}, and pretrain.steps is 0, so "
            "that nothing is pre-trained; give the steps, or leave pretrain.arch ''"
        )
    return with_spaces(load_teacher_side(config, workdir))


def load_teacher_side(
    config: ConfigDict, workdir: epath.Path | None = None
) -> TeacherSide:
    """What does not hang on a space: all that the job pretrain needs.

    Args:
      config: with all flags in it.
      workdir: as of `load_experiment`.

    Returns:
      The teacher's side of the experiment.

    Raises:
      UserError: whatever cannot work, in one line.
    """
    schema.check_config(config)
    data = config.data
    corpus.check_source(data.source, data.packages, data.download)
    source, teacher = load_teachers(config, workdir)
    tokenizer = tokenization.load_tokenizer(source.folder, teacher.dims.vocab)
    length = max(
        data.max_seq_length,
        config.latency.max_seq_length,
        config.finetune.max_seq_length,
    )
    if length > teacher.dims.positions:
        raise UserError(
            f"a length of {length} tokens is more than the teacher's "
            f"{teacher.dims.positions} positions; use shorter texts"
        )
    mesh = sharding.make_mesh(config.mesh)
    check_batches(config, mesh)
    special_tokens = tokenization.special_tokens(tokenizer)
    return TeacherSide(config, source, teacher, tokenizer, special_tokens, mesh)


def with_spaces(teacher_side: TeacherSide) -> Experiment:
    """Adds all that hangs on the spaces.

    Args:
      teacher_side: of `load_teacher_side`.

    Returns:
      The experiment, complete.

    Raises:
      UserError: as `load_experiment`.
    """
    config, teacher = teacher_side.config, teacher_side.teacher
    spaces = spaces_from_config(config.space, teacher.arch)
    families = {type(teacher.arch), next(iter(spaces.values())).family}
    if config.budget.convention == "paper" and MobileArch in families:
        raise UserError(
            "budget.convention is 'paper', which does not count MobileBERTs; set it to "
            "'executed'"
        )
    objective = parse_objective(
        config.distill.to_dict(),
        list(spaces.values()),
        teacher,
        teacher_side.special_tokens,
    )
    if config.export.align:
        _check_align(config, teacher, objective)
    if "nsp" in objective.weights and config.data.row_format != "pair":
        raise UserError(
            "distill.losses has nsp, which needs pairs of sentences, and "
            f"data.row_format is {config.data.row_format}; set data.row_format to "
            "pair, or take the loss out"
        )
    for name in config.distill.freeze:
        if name not in teacher.params:
            raise UserError(
                f"distill.freeze names {name!r}; known: {', '.join(teacher.params)}"
            )
    mesh = teacher_side.mesh
    for axis in teacher.arch.shardable_axes:
        sharding.check_tensor_split(mesh, axis, [getattr(teacher.arch, axis)])
    for space in spaces.values():
        for axis in space.largest().shardable_axes:
            sharding.check_tensor_split(
                mesh, axis, [n for (n,) in space.axis_values_product(axis)]
            )
    fields = dataclasses.fields(TeacherSide)
    initial_params = _initial_params(config, teacher, spaces)
    experiment = Experiment(
        **{field.name: getattr(teacher_side, field.name) for field in fields},
        spaces=spaces,
        budgets=parse_budgets(config.budget.to_dict()),
        objective=objective,
        affordable={},
        initial_params=initial_params,
        kept_by_depth=named_layers(
            config.distill.kept_layers,
            initial_params[0].layers,
            {depth for space in spaces.values() for depth in space.layers},
        ),
    )
    return dataclasses.replace(experiment, affordable=_affordable_archs(experiment))


def _check_align(
    config: ConfigDict, teacher: huggingface.Teacher, objective: Objective
) -> None:
    """Raises UserError where no projection to the teacher's embeddings is trained, or
    none can go out."""
    if not teacher.embeds_sentences:
        raise UserError(
            "export.align is True, and the teacher is no sentence-embedding model; "
            "leave it False"
        )
    if config.search.proxy == "flash" or "pooled" not in objective.weights:
        raise UserError(
            "export.align is True, which needs the trained projection of the loss "
            f"pooled, and distill.losses is {config.distill.losses!r} under "
            f"search.proxy {config.search.proxy!r}; add pooled, or leave it False"
        )


def check_batches(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where a batch that trains does not divide over the mesh."""
    for section in ("pretrain", "distill"):
        if section == "distill" or config.pretrain.steps:
            size, field = config[section].batch_size, f"{section}.batch_size"
            sharding.check_batch(
                mesh, size, field, config.mesh.gradient_accumulation_steps
            )


def spaces_from_config(settings: ConfigDict, teacher: AnyArch) -> dict[str, Space]:
    """The spaces of a config: its one grid, `main`, or the teacher's `partition`.

    Args:
      settings: the section space.
      teacher: the teacher's Arch, which a partition is cut by.

    Returns:
      {name: Space}.

    Raises:
      UserError: both are given, or a grid that cannot be.
    """
    grid = settings.to_dict()
    count, norm = grid.pop("partition"), grid.pop("norm")
    if count:
        grid_fields = [name for name, value in grid.items() if value]
        if grid_fields:
            raise UserError(
                f"space.partition is {count} and space.{grid_fields[0]} is "
                f"{grid[grid_fields[0]]!r}; give one of the two: the grid's fields are "
                "() and 0 beside a partition"
            )
        if isinstance(teacher, MobileArch):
            raise UserError(
                f"space.partition is {count}, which cuts spaces of BERTs, and the "
                "teacher is a MobileBERT; give the space's axes instead"
            )
        names: Sequence[str] | None = {3: ("tiny", "small", "base")}.get(count)
        names = names or [f"part{i}" for i in range(1, count + 1)]
        return dict(zip(names, published.partition(teacher, count)))
    grid["head_size"] = grid["head_size"] or teacher.head_size
    space = Space(**grid)
    if norm and space.family is Arch:
        raise UserError(
            f"space.norm is {norm!r}, and the space is of BERTs, which have LayerNorm; "
            "leave it '', or give space.bottleneck and space.stacks for MobileBERTs"
        )
    return {"main": space}


def _initial_params(
    config: ConfigDict, teacher: huggingface.Teacher, spaces: Mapping[str, Space]
) -> tuple[AnyArch, dict]:
    """Where training starts: the teacher's weights, random ones, or a student's."""
    kind = config.distill.init_from
    space, tops = next(iter(spaces.values())), [s.largest() for s in spaces.values()]
    dims = student_dims(teacher.dims, space.family, config.space.norm)
    widest = space.arch(
        {axis: max(getattr(top, axis) for top in tops) for axis in space.family.axes}
    )
    if kind == "random":
        if config.distill.freeze:
            raise UserError(
                "distill.init_from is random, and distill.freeze keeps "
                f"{', '.join(config.distill.freeze)} as they start; give "
                "--config.distill.freeze='()'"
            )
        module = build.build_module(widest, dims)
        params = build.init_params(module, jax.random.key(config.seed))
        return widest, {k: np.asarray(v) for k, v in params.items()}
    if not kind:
        raise UserError(
            "distill.init_from is empty; give teacher, random, or a student's folder"
        )
    if kind == "teacher" and type(teacher.arch) is not space.family:
        return widest, _random_but_word_embeddings(teacher, widest, dims, config.seed)
    source = teacher if kind == "teacher" else huggingface.load_pretrained(kind)
    try:
        extract.check_fits(source.arch, widest)
    except UserError as error:
        same_family = type(source.arch) is type(widest)
        advice = "" if same_family else "; set distill.init_from to random"
        raise UserError(
            f"distill.init_from={kind} and the space: {error}{advice}"
        ) from None
    if source.dims._replace(reference_heads=0) != dims._replace(reference_heads=0):
        raise UserError(
            f"distill.init_from={kind} has {source.dims}, and the students have "
            f"{dims}; they must share vocabulary, positions and activation"
        )
    return source.arch, source.params


def _random_but_word_embeddings(
    teacher: huggingface.Teacher, arch: AnyArch, dims: ModelDims, seed: int
) -> dict[str, np.ndarray]:
    """Random weights of another family than the teacher's, but for the word embeddings:
    the teacher's along their main directions, as many as there is room for."""
    module = build.build_module(arch, dims)
    params = {
        name: np.asarray(value)
        for name, value in build.init_params(module, jax.random.key(seed)).items()
    }
    embeddings = teacher.params["embeddings_word"]
    width = params["embeddings_word"].shape[1]
    if width <= embeddings.shape[1]:
        _, directions = np.linalg.eigh(embeddings.T @ embeddings)
        params["embeddings_word"] = embeddings @ directions[:, ::-1][:, :width]
    return params


def _affordable_archs(experiment: Experiment) -> Mapping[AnyArch, str]:
    """The Archs under the budget, or the one that `search.fixed_arch` names."""
    config = experiment.config
    if config.search.fixed_arch:
        head_size = next(iter(experiment.spaces.values())).head_size
        arch = published.parse_arch_or_name(
            config.search.fixed_arch, head_size, "search.fixed_arch"
        )
        for name, space in experiment.spaces.items():
            if arch in space:
                return {arch: name}
        if type(arch) is not experiment.family:
            raise UserError(
                f"search.fixed_arch: {arch} is of another family than the space, whose "
                f"axes are {', '.join(experiment.family.axes)}; give one of its own"
            )
        near = [space.nearest(arch) for space in experiment.spaces.values()]
        raise UserError(
            f"search.fixed_arch: {arch} is outside the space; the nearest inside is "
            f"{nearest_arch(near, arch)}"
        )
    return AffordableArchs(
        experiment.spaces,
        experiment.budget,
        experiment.cost(experiment.teacher.arch),
        experiment.dims,
        config.latency.max_seq_length,
    )
