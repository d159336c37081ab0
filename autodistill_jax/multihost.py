"""Which of several processes does what? All compute; the first alone reads, decides, writes.

Every process runs the same program. What must be done once is done by the first, inside
`on_first_process`, and the others wait for its value; so nothing is read before it is written. With
one process all of this is nothing.
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

_DONE_TIMEOUT_MS = 300_000  # Milliseconds, with a process that should be done, too.
_HOUR_MS = 3_600_000  # Milliseconds. A process that died is found by its heartbeat.
# Seconds that a process waits for the others when it ends. One that ends before them has
# failed alone: it takes them along.
_SHUTDOWN_SECONDS = 30
_call_numbers, _step_numbers = itertools.count(), itertools.count()
_is_leading = False


def join_processes(
    coordinator: str = "", processes: int = 0, process: int = -1
) -> None:
    """Joins the other processes, if there are any; before JAX is used for anything else.

    Args:
      coordinator: "HOST:PORT" of the first process, with `processes` and `process`, this
        one's number; "auto": asks the cluster (Cloud TPU, GKE, Slurm, Open MPI); "": that,
        where a TPU is attached, else there is one process.

    Raises:
      UserError: some of the three are missing or cannot be, or no cluster is found.
    """
    if coordinator in ("", "auto") and (processes, process) != (0, -1):
        raise UserError(
            "--processes and --process go with --coordinator=HOST:PORT, the first "
            f"process', and it is {coordinator or 'missing'}; give all three, or take the "
            "two out where the cluster tells them"
        )
    if jax.distributed.is_initialized() or (not coordinator and not _on_tpu()):
        return
    # Between the CPUs of several machines; the devices of others have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _initialize(coordinator, processes, process)
    jax.devices()  # All make themselves known to all: later some would wait elsewhere.


def _initialize(coordinator: str, processes: int, process: int) -> None:
    if coordinator in ("", "auto"):
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
        except (ValueError, RuntimeError) as error:
            # None tells of others, or JAX runs already, in a notebook: there are none,
            # unless JAX itself knows some.
            if coordinator or jax.process_count() > 1:
                raise UserError(
                    f"the cluster does not tell where the processes are: {error} Cloud "
                    "TPU, GKE, Slurm and Open MPI do; elsewhere give "
                    "--coordinator=HOST:PORT, --processes and --process"
                ) from error
        return
    _, _, port = coordinator.rpartition(":")
    wrong = {
        f"--coordinator={coordinator} has no port": not port.isdigit(),
        "--processes is missing": processes < 1,
        "--process is missing": process < 0,
        f"--process={process} is not below --processes={processes}": process
        >= processes,
    }
    for what, so in wrong.items():
        if so:
            raise UserError(
                f"{what}; give HOST:PORT of the first process, how many there are, and "
                "this one's number, from 0"
            )
    try:
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except RuntimeError as error:
        raise UserError(
            f"--coordinator={coordinator}: the processes did not find each other: {error}"
        ) from error


def _on_tpu() -> bool:
    there = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    asked = jax.config.jax_platforms or ""
    return (
        bool(there)
        and importlib.util.find_spec("libtpu") is not None
        and asked in ("", "tpu", "tpu,cpu")
    )


def process_count() -> int:
    return distributed.global_state.num_processes or 1


def is_first_process() -> bool:
    """Is this the first process, or the only one?"""
    return not distributed.global_state.process_id


def on_first_process(do: Callable[[], T]) -> T:
    """What do() gives on the first process, on all; what it raises is raised on all.

    It begins when all processes are here. do() must not compute on a mesh of all
    devices: the others are not with it.
    """
    global _is_leading
    if process_count() == 1 or _is_leading:
        return do()
    number = next(_call_numbers)
    _client().wait_at_barrier(f"autodistill_jax/{number}", 24 * _HOUR_MS)
    told = None
    if is_first_process():
        _is_leading = True
        try:
            told = True, do()
        except Exception as error:
            told = False, error
            _share_value(number, told)
            raise
        finally:
            _is_leading = False
    return _share_value(number, told)


def is_preempted() -> bool:
    """Has any process been told to end (SIGTERM), as before its machine goes away? All ask
    after each step, and after the same one it is true for all. Where there is a cluster
    JAX catches the signal, of one process too, and nothing else ends it."""
    there = distributed.global_state.preemption_sync_manager
    return there is not None and multihost_utils.reached_preemption_sync_point(
        next(_step_numbers)
    )


def raise_if_preempted() -> None:
    """Raises KeyboardInterrupt where one was told to end, between two things that are kept
    when they are done; see `is_preempted`."""
    if is_preempted():
        raise KeyboardInterrupt


def all_processes(flag: bool) -> bool:
    """Is it so on all processes?"""
    if process_count() == 1 or _is_leading:
        return flag
    number = next(_call_numbers)
    key = f"autodistill_jax/every/{number}/"
    _client().key_value_set(f"{key}{distributed.global_state.process_id}", str(flag))

    def all_of_them():
        found = [
            _client().blocking_key_value_get(f"{key}{i}", 24 * _HOUR_MS)
            for i in range(process_count())
        ]
        return found == ["True"] * process_count()

    return on_first_process(all_of_them)


def run_on_leader(
    run: Callable[[Callable[..., Any]], T], works: Callable[..., Any]
) -> T:
    """What run(ask) gives on the first process, on all, where what `run` does next is
    for it to decide: ask(*args) there is works(*args) on every process.

    What works() raises on all is raised out of ask(). Where only some of them raise, the
    processes are apart for good: the first ends, and all with it.
    """
    global _is_leading
    if process_count() == 1 or _is_leading:
        return run(works)

    def ask(*args):
        global _is_leading
        number = next(_call_numbers)
        _share_value(number, (True, args))
        _is_leading = False
        try:
            return _run_together(number, works, args)
        finally:
            _is_leading = True

    if is_first_process():
        _is_leading = True
        try:
            made = run(ask)
        except Exception as error:
            _share_value(next(_call_numbers), (False, error))
            raise
        finally:
            _is_leading = False
        _share_value(next(_call_numbers), (True, None))
        return on_first_process(lambda: made)
    while (args := _share_value(number := next(_call_numbers), None)) is not None:
        # The first has it raised too, and says what follows.
        with contextlib.suppress(Exception):
            _run_together(number, works, args)
    return on_first_process(lambda: None)


def _run_together(number: int, works: Callable[..., Any], args: tuple) -> Any:
    """works(*args), once the first process knows that it has ended alike on all, and one
    where it failed that it has failed on the first."""
    made = error = None
    raise_if_preempted()
    try:
        made = works(*args)
    except Exception as found:  # noqa: BLE001 It is raised below.
        error = found
    key = f"autodistill_jax/worked/{number}/"
    _client().key_value_set(f"{key}{distributed.global_state.process_id}", repr(error))
    for i in range(1, process_count()) if is_first_process() else [0] if error else []:
        try:
            theirs = _client().blocking_key_value_get(f"{key}{i}", _DONE_TIMEOUT_MS)
        except jax.errors.JaxRuntimeError as late:
            told = f"process {i} does not come along; this one ended with {error!r}"
            raise SystemExit(told) from late
        if (theirs == "None") != (error is None):
            raise SystemExit(
                f"process {i} ended with {theirs}, this one with {error!r}"
            )
    if error is not None:
        raise error
    return made


def _share_value(number: int, told: tuple[bool, Any] | None) -> Any:
    """The first process' value, on all; its error is raised on the others."""
    key = f"autodistill_jax/told/{number}"
    if is_first_process():
        _client().key_value_set_bytes(key, _pickle_value(told))
        return told[1]
    done, value = pickle.loads(
        _client().blocking_key_value_get_bytes(key, 24 * _HOUR_MS)
    )
    if not done:
        raise value
    return value


def _pickle_value(told):
    try:
        return pickle.dumps(told)
    except (TypeError, AttributeError, pickle.PicklingError):  # Of an error, say.
        return pickle.dumps((told[0], RuntimeError(str(told[1]))))


def _client():
    return distributed.global_state.client
