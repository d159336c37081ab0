"""The command line: flags -> config -> one job."""

import ast
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from autodistill_jax.errors import UserError
from autodistill_jax.experiment.base_config import RENAMED_FIELDS
from autodistill_jax.experiment.config_file import preset_error
from autodistill_jax.jobs import JOBS, STAGES, job_function

_USAGE = (
    "python -m autodistill_jax JOB --config=FILE.py[:preset] --workdir=DIR "
    "[--config.section.field=value ...]"
)


def _define_flags(argv: list[str]) -> flags.FlagValues:
    """Flags of their own, so that a notebook or a test may call `main` twice."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A config file, with :preset if it has any.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir", None, "Where the experiment lives.", flag_values=values
    )
    flags.DEFINE_string(
        "arch",
        None,
        "For `cost` and `latency`: an Arch or its name.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "calibrate",
        False,
        "For `latency`: how far off are predictions on this device?",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of the first of several processes; auto: the cluster tells.",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", 0, "How many there are.", flag_values=values)
    flags.DEFINE_integer(
        "process", -1, "The number of this one, from 0.", flag_values=values
    )
    return values


class _Call(NamedTuple):
    """What the command line asks for.

    Attributes:
      job: its name in `JOBS`.
      config: as the flags left it.
      workdir: a folder or gs:// address; None where it is not given.
      arch: of `cost` and `latency`, as text.
      calibrate: of `latency`.
      processes: (coordinator, how many processes, number of this one).
    """

    job: str
    config: ConfigDict
    workdir: str | None
    arch: str | None
    calibrate: bool
    processes: tuple[str, int, int]


def _parse(argv: list[str]) -> _Call:
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        jobs = "\n".join(f"  {job:9} {text}" for job, (text, _) in JOBS.items())
        print(f"{_USAGE}\n\n{jobs}")
        raise SystemExit(0 if len(argv) > 1 else 2)
    job = argv[1]
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(JOBS)}")
    values, extra = _parse_flags(argv)
    if extra:
        raise UserError(f"{extra[0]!r} is not a known flag; usage: {_USAGE}")
    if values.config is None:
        raise UserError(f"--config is missing; usage: {_USAGE}")
    if job in ("run", *STAGES) and not values.workdir:
        raise UserError(f"--workdir is missing; usage: {_USAGE}")
    if values.calibrate and job != "latency":
        raise UserError(f"--calibrate is of the job latency, not of {job}; take it out")
    processes = (values.coordinator, values.processes, values.process)
    return _Call(
        job, values.config, values.workdir, values.arch, values.calibrate, processes
    )


def _parse_flags(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """(the flags' values, what is left over)."""
    values = _define_flags(argv)
    # ml_collections and absl raise or exit from here in many ways, all of them the
    # user's mistakes: a wrong file, field, type or flag.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            extra = values([argv[0], *argv[2:]])[1:]
        if values.config is not None:
            values.config.items()  # A file that failed to load raises only now.
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"--config: no file {error.filename}") from error
    except (Exception, SystemExit) as error:
        text = _renamed_error(argv) or _preset_error(argv, error)
        raise UserError(text or _describe_error(error)) from error
    return values, extra


def _preset_error(argv: list[str], error: BaseException) -> str | None:
    """What to say where the config file has no such preset."""
    for arg in argv:
        if flag := re.fullmatch(r"--?config=(.+\.py):(.+)", arg):
            return preset_error(Path(flag[1]), flag[2], error)
    return None


def _renamed_error(argv: list[str]) -> str | None:
    """What to say where a flag sets a field by the name that it had before."""
    for arg in argv:
        flag = re.match(r"--?config\.([\w.]+)(=|$)", arg)
        if flag and flag[1] in RENAMED_FIELDS:
            return f"{flag[1]} is now {RENAMED_FIELDS[flag[1]]}"
    return None


def _describe_error(error: BaseException) -> str:
    # A KeyError's own text is quoted and escaped.
    content = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(content).split()) or type(error).__name__
    if missing := re.search(r"No such file or directory: '([^']*)'", text):
        return f"--config: no file {missing[1]}"
    if isinstance(error, KeyError | AttributeError):
        if re.fullmatch(r"'.*'", text):  # Quoted and escaped once more.
            text = " ".join(str(ast.literal_eval(text)).split())
        return f"--config: unknown field or preset: {text}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{text}; a field of the config is --config.section.field=value"
    return text if isinstance(error, flags.Error) else f"--config: {text}"


def main(argv: list[str] | None = None) -> int:
    """Runs one job.

    Args:
      argv: the program's name, the job and its flags; `sys.argv` if None.

    Returns:
      The exit status: 0 if it is done; 1 if `preflight` says no; 2, with one line on
      stderr, if the input is wrong; 130 if it was told to stop.
    """
    try:
        call = _parse(sys.argv if argv is None else argv)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        return _run(call)
    except UserError as error:
        print(f"autodistill_jax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autodistill_jax: stopped; the same command goes on", file=sys.stderr)
        return 130


def _run(call: _Call) -> int:
    if call.job in ("cost", "preflight", "config"):  # They look at no device.
        if call.processes != ("", 0, -1):
            raise UserError(
                f"{call.job} is for one process; take out --coordinator, --processes, "
                "--process"
            )
    else:
        from autodistill_jax import multihost

        multihost.join_processes(*call.processes)
        from autodistill_jax.experiment.schema import check_same_everywhere

        check_same_everywhere(call.job, call.config)
    if call.job in ("run", *STAGES):
        job_function("run")(call.job, call.config, call.workdir)
        return 0
    arguments = {
        "latency": (call.workdir, call.arch, call.calibrate),
        "cost": (call.arch,),
    }.get(call.job, ())
    # Only preflight says no.
    record = job_function(call.job)(call.config, *arguments)
    return 1 if call.job == "preflight" and not record["fits"] else 0
