"""Several processes as one run: all compute, the first one reads, decides and writes.

Every process runs the same program. What must be done once is done by the first, inside
`on_first_process`, and the others wait for its value; so nothing is read before it is
written. With one process none of this does anything.
"""

import contextlib
import glob
import importlib.util
import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax

# The public way to share a value, multihost_utils, is a collective of the devices: on a
# CPU it gives up after seconds, and the first process may take hours.
from jax._src import distributed
from jax.experimental import multihost_utils

from autodistill_jax.errors import UserError

T = TypeVar("T")

# How long to wait for a process that should be done as well.
_DONE_TIMEOUT_MS = 300_000
# A process that has died is found by its heartbeat, not by a time limit.
_HOUR_MS = 3_600_000
# How long a process waits for the others when it ends. One that ends earlier than they
# do has failed alone: it takes them along.
_SHUTDOWN_SECONDS = 30
_call_numbers, _step_numbers = itertools.count(), itertools.count()
# Whether this process is the first and runs a function that the others wait for.
_is_leading = False


def join_processes(
    coordinator: str = "", processes: int = 0, process: int = -1
) -> None:
    """Joins the other processes, if any; before JAX is used for anything else.

    Args:
      coordinator: "HOST:PORT" of the first process, which `processes` and `process` go
        with; "auto": asks the cluster (Cloud TPU, GKE, Slurm, Open MPI); "": does so
        where a TPU is attached, else there is one process.
      processes: how many there are.
      process: this one's number, from 0.

    Raises:
      UserError: some of the three are missing or invalid, or no cluster is found.
    """
    if coordinator in ("", "auto") and (processes, process) != (0, -1):
        raise UserError(
            "--processes and --process go with --coordinator=HOST:PORT, the first "
            f"process', and it is {coordinator or 'missing'}; give all three, or "
            "take the two out where the cluster tells them"
        )
    if jax.distributed.is_initialized() or (not coordinator and not _on_tpu()):
        return
    # Between the CPUs of several machines; the devices of others have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _initialize(coordinator, processes, process)
    # All processes exchange their devices here: later some would be waiting elsewhere.
    jax.devices()


def _initialize(coordinator: str, processes: int, process: int) -> None:
    if coordinator in ("", "auto"):
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
        except (ValueError, RuntimeError) as error:
            # No cluster names other processes, or JAX runs already (in a notebook):
            # this is the only one, unless JAX itself knows of more.
            if coordinator or jax.process_count() > 1:
                raise UserError(
                    f"the cluster does not tell where the processes are: {error} Cloud "
                    "TPU, GKE, Slurm and Open MPI do; elsewhere give "
                    "--coordinator=HOST:PORT, --processes and --process"
                ) from error
        return
    _, _, port = coordinator.rpartition(":")
    problems = {
        f"--coordinator={coordinator} has no port": not port.isdigit(),
        "--processes is missing": processes < 1,
        "--process is missing": process < 0,
        f"--process={process} is not below --processes={processes}": process
        >= processes,
    }
    for problem, holds in problems.items():
        if holds:
            raise UserError(
                f"{problem}; give HOST:PORT of the first process, how many there are, "
                "and this one's number, from 0"
            )
    try:
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except RuntimeError as error:
        raise UserError(
            f"--coordinator={coordinator}: the processes did not find each other: "
            f"{error}"
        ) from error


def _on_tpu() -> bool:
    device_files = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    platforms = jax.config.jax_platforms or ""
    return (
        bool(device_files)
        and importlib.util.find_spec("libtpu") is not None
        and platforms in ("", "tpu", "tpu,cpu")
    )


def process_count() -> int:
    """How many processes the run has."""
    return distributed.global_state.num_processes or 1


def is_first_process() -> bool:
    """Whether this is the first process, or the only one."""
    return not distributed.global_state.process_id


def on_first_process(fn: Callable[[], T]) -> T:
    """Calls a function on the first process alone, and gives its result to all.

    It begins when all processes have come here.

    Args:
      fn: takes nothing. It must not compute on a mesh of all devices: the other
        processes do not take part.

    Returns:
      What fn() returned on the first process, on all.

    Raises:
      Exception: what fn() raised on the first process, on all.
    """
    global _is_leading
    if process_count() == 1 or _is_leading:
        return fn()
    number = next(_call_numbers)
    _client().wait_at_barrier(f"autodistill_jax/{number}", 24 * _HOUR_MS)
    outcome = None
    if is_first_process():
        _is_leading = True
        try:
            outcome = True, fn()
        except Exception as error:
            outcome = False, error
            _share_value(number, outcome)
            raise
        finally:
            _is_leading = False
    return _share_value(number, outcome)


def is_preempted() -> bool:
    """Whether a process got SIGTERM, as before its machine goes away.

    All processes ask after each step, and after the same step it is true for all. Where
    there is a cluster JAX catches the signal, of one process too, and nothing else ends
    it.
    """
    sync_manager = distributed.global_state.preemption_sync_manager
    return sync_manager is not None and multihost_utils.reached_preemption_sync_point(
        next(_step_numbers)
    )


def raise_if_preempted() -> None:
    """Ends the run where a process got SIGTERM; see `is_preempted`.

    For the points between two pieces of work whose results are stored when done.

    Raises:
      KeyboardInterrupt: a process got SIGTERM.
    """
    if is_preempted():
        raise KeyboardInterrupt


def all_processes(flag: bool) -> bool:
    """Whether a flag is true on all processes."""
    if process_count() == 1 or _is_leading:
        return flag
    number = next(_call_numbers)
    key = f"autodistill_jax/flags/{number}/"
    _client().key_value_set(f"{key}{distributed.global_state.process_id}", str(flag))

    def all_of_them():
        flags = [
            _client().blocking_key_value_get(f"{key}{i}", 24 * _HOUR_MS)
            for i in range(process_count())
        ]
        return flags == ["True"] * process_count()

    return on_first_process(all_of_them)


def run_on_leader(
    leader_fn: Callable[[Callable[..., Any]], T], worker_fn: Callable[..., Any]
) -> T:
    """Lets the first process decide, call by call, what all processes do next.

    Args:
      leader_fn: called on the first process with call_all, and call_all(*args) there is
        worker_fn(*args) on every process.
      worker_fn: what all do. An error that it raises on all is raised out of call_all.
        Where it raises on some only, the processes cannot go on together: the first
        ends, and all with it.

    Returns:
      What leader_fn returned on the first process, on all.

    Raises:
      Exception: what leader_fn raised on the first process, on all.
    """
    global _is_leading
    if process_count() == 1 or _is_leading:
        return leader_fn(worker_fn)

    def call_all(*args):
        global _is_leading
        number = next(_call_numbers)
        _share_value(number, (True, args))
        _is_leading = False
        try:
            return _run_together(number, worker_fn, args)
        finally:
            _is_leading = True

    if is_first_process():
        _is_leading = True
        try:
            result = leader_fn(call_all)
        except Exception as error:
            _share_value(next(_call_numbers), (False, error))
            raise
        finally:
            _is_leading = False
        _share_value(next(_call_numbers), (True, None))
        return on_first_process(lambda: result)
    while (args := _share_value(number := next(_call_numbers), None)) is not None:
        # It was raised on the first process as well, which decides what follows.
        with contextlib.suppress(Exception):
            _run_together(number, worker_fn, args)
    return on_first_process(lambda: None)


def _run_together(number: int, worker_fn: Callable[..., Any], args: tuple) -> Any:
    """worker_fn(*args) on all processes, which end alike or not at all.

    The first process waits to hear that all have ended as it has; another one that has
    failed waits to hear that the first has failed as well.
    """
    result = error = None
    raise_if_preempted()
    try:
        result = worker_fn(*args)
    except Exception as raised:  # noqa: BLE001 It is raised below.
        error = raised
    key = f"autodistill_jax/errors/{number}/"
    _client().key_value_set(f"{key}{distributed.global_state.process_id}", repr(error))
    for i in range(1, process_count()) if is_first_process() else [0] if error else []:
        try:
            reported = _client().blocking_key_value_get(f"{key}{i}", _DONE_TIMEOUT_MS)
        except jax.errors.JaxRuntimeError as timeout:
            message = f"process {i} does not come along; this one ended with {error!r}"
            raise SystemExit(message) from timeout
        if (reported == "None") != (error is None):
            raise SystemExit(
                f"process {i} ended with {reported}, this one with {error!r}"
            )
    if error is not None:
        raise error
    return result


def _share_value(number: int, outcome: tuple[bool, Any] | None) -> Any:
    """The first process' value, on all; its error is raised on the others.

    outcome: (True, value) or (False, error) on the first process, None on the others.
    """
    key = f"autodistill_jax/outcome/{number}"
    if is_first_process():
        _client().key_value_set_bytes(key, _pickle_value(outcome))
        return outcome[1]
    done, value = pickle.loads(
        _client().blocking_key_value_get_bytes(key, 24 * _HOUR_MS)
    )
    if not done:
        raise value
    return value


def _pickle_value(outcome: tuple[bool, Any]) -> bytes:
    try:
        return pickle.dumps(outcome)
    except (TypeError, AttributeError, pickle.PicklingError):  # Of an error, say.
        return pickle.dumps((outcome[0], RuntimeError(str(outcome[1]))))


def _client():
    return distributed.global_state.client
