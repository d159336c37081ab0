"""How long one training takes beside another.

Their steps are timed in turn, so that what else the machine does divides out; what
compiling takes counts nowhere.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space, single
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.programs import init_training
from autodistill_jax.experiment.superlm import teacher_mlm_head, training_inputs
from autodistill_jax.experiment.workdir import superlm_folder
from autodistill_jax.models.build import Params

_TIMED_STEPS = 16  # of each, on batches of most lengths
_ROUNDS = 2


class Training(NamedTuple):
    """What `superlm.train_superlm` trains.

    Attributes:
      experiment: complete.
      space: of the SuperLM; of one Arch: that network alone is trained.
      start_params: the network and heads to start from; None: see
        `programs.superlm_step`.
    """

    experiment: Experiment
    space: Space
    start_params: Params | None = None


def training_alone(experiment: Experiment, arch: AnyArch) -> Training:
    """The training of one Arch alone by the experiment's objective, as at its finish."""
    space = single(arch)
    return Training(dataclasses.replace(experiment, spaces={"alone": space}), space)


def steps_alone(
    experiment: Experiment,
    workdir: epath.Path,
    space: str,
    arch: AnyArch,
    num_students: int,
    stage: str,
) -> float:
    """How many steps of its Arch alone take as long as all of a student's training.

    Args:
      experiment: complete.
      workdir: with the text's rows; how long a step of the SuperLM takes beside one of
        the Arch alone is kept there.
      space: the name of the SuperLM's.
      arch: of the student.
      num_students: among which the SuperLM's steps are parted.
      stage: of the log's lines.

    Returns:
      The steps of its finish, and its part of the SuperLM's in steps of the Arch.
    """
    path = superlm_folder(workdir, space).parent / f"step-{arch.name}.json"
    if not path.exists():
        of_superlm = Training(experiment, experiment.spaces[space])
        ratio = step_time_ratio(
            of_superlm, training_alone(experiment, arch), workdir, f"{stage}: a SuperLM"
        )
        storage.write_json(path, {"steps_alone": ratio})
    ratio = json.loads(path.read_text())["steps_alone"]
    settings = experiment.config.distill
    return settings.finish_steps + settings.steps * ratio / num_students


def step_time_ratio(
    training: Training, reference: Training, workdir: epath.Path, stage: str
) -> float:
    """How many times as long a step of a training takes as one of another.

    Args:
      training: whose steps are told.
      reference: in whose steps they are told.
      workdir: with the text's rows.
      stage: of the log's lines.

    Returns:
      The ratio of their times over the same steps.
    """
    settings = training.experiment.config.distill
    count = min(_TIMED_STEPS, settings.steps + settings.finish_steps)
    log.say(f"{stage}: timing {_ROUNDS} x {count} steps ...")
    timers = [_step_timer(of_one, workdir, stage) for of_one in (training, reference)]
    seconds = np.full((len(timers), count), np.inf)
    # At first targets are made, and every length is compiled. Then the least counts:
    # another process may have had the cores.
    for is_counted in (False, *(True,) * _ROUNDS):
        for i in range(count):
            for number, timer in enumerate(timers):
                seconds[number, i] = min(timer(i, is_counted), seconds[number, i])
    ratio = float(np.divide(*seconds.sum(axis=1)))
    log.say(f"{stage}: a step takes {ratio:.2f} times as long as the student's alone")
    return ratio


def _step_timer(
    training: Training, workdir: epath.Path, stage: str
) -> Callable[[int, bool], float]:
    """(step, whether it counts) -> its seconds; one that does not is run if its batch has
    a length that was not seen yet, and gives inf."""
    experiment, space, start_params = training
    inputs_at_step = training_inputs(experiment, workdir, space)
    mlm_head = teacher_mlm_head(experiment, workdir, stage)
    state, frozen, step, teacher_params = init_training(
        experiment, space, mlm_head, start_params
    )
    seen_shapes: set[tuple[int, ...]] = set()

    def seconds(i: int, is_counted: bool) -> float:
        nonlocal state
        start = time.monotonic()
        inputs = inputs_at_step(i)
        shape = inputs[0]["input_ids"].shape
        if is_counted or shape not in seen_shapes:
            # The first state has another placement than one that a step has left.
            for _ in range(1 if seen_shapes else 2):
                state, values = step(state, frozen, teacher_params, *inputs)
            jax.block_until_ready(values)
        seen_shapes.add(shape)
        return time.monotonic() - start if is_counted else math.inf

    return seconds
