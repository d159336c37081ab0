"""The command line: flags -> config -> one job."""

import ast
import contextlib
import os
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from autodistill_jax.errors import UserError
from autodistill_jax.experiment.base_config import RENAMED_FIELDS

_JOBS = {
    "run": "all that the config asks for, from pretrain or distill to report",
    "pretrain": "train a teacher of your own on text: hidden words, next sentences",
    "distill": "train the SuperLM of each space from the teacher",
    "search": "the Archs under the budget -> the front, and one chosen",
    "transfer": "with search.proxy=flash: the best Archs, trained block by block",
    "export": "the chosen Arch -> a Hugging Face folder",
    "baselines": "the chosen Arch by other methods, from the same teacher and text",
    "finetune": "student, baselines and teacher on labelled tasks -> one table",
    "rank": "do the proxies order Archs as fine-tuning does? Kendall's tau",
    "report": "report.html from what is in the workdir",
    "latency": "seconds of one Arch as JSON, measured here or compiled for a TPU",
    "preflight": "memory, time and collectives on a TPU slice, as JSON, before it is rented",
    "cost": "params and FLOPs of one Arch, as JSON: --arch=layers=3,... or --arch=minilm",
}
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


def _parse(argv: list[str]):
    values = _define_flags(argv)
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        jobs = "\n".join(f"  {job:9} {what}" for job, what in _JOBS.items())
        print(f"{_USAGE}\n\n{jobs}")
        raise SystemExit(0 if len(argv) > 1 else 2)
    job = argv[1]
    if job not in _JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(_JOBS)}")
    # ml_collections and absl raise or exit from here in many ways, all of them the
    # user's mistakes: a wrong file, field, type or flag.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            rest = values([argv[0], *argv[2:]])
        config = values.config
        if config is not None:
            config.items()  # A file that failed to load raises only when it is used.
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"--config: no file {error.filename}") from error
    except (Exception, SystemExit) as error:
        told = _renamed_error(argv) or _preset_error(argv, error)
        raise UserError(told or _describe_error(error)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; usage: {_USAGE}")
    if config is None:
        raise UserError(f"--config is missing; usage: {_USAGE}")
    if job not in ("cost", "latency", "preflight") and not values.workdir:
        raise UserError(f"--workdir is missing; usage: {_USAGE}")
    if values.calibrate and job != "latency":
        raise UserError(f"--calibrate is of the job latency, not of {job}; take it out")
    where = (values.coordinator, values.processes, values.process)
    return job, config, values.workdir, (values.arch, values.calibrate), where


def _preset_error(argv: list[str], error: BaseException) -> str | None:
    """What to say where the config file looked its preset up and did not find it."""
    name = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    for arg in argv:
        told = re.fullmatch(r"--?config=(.+\.py):(.+)", arg)
        if told and name and told[2].startswith(name):
            parts = ast.parse(Path(told[1]).read_text()).body
            about = [ast.get_docstring(p) for p in parts if hasattr(p, "args")]
            return (
                f"{told[1]} has no preset {told[2]!r}. {' '.join(filter(None, about))}"
            )
    return None


def _renamed_error(argv: list[str]) -> str | None:
    """What to say where a flag sets a field by the name that it had before."""
    for arg in argv:
        found = re.match(r"--?config\.([\w.]+)(=|$)", arg)
        if found and found[1] in RENAMED_FIELDS:
            return f"{found[1]} is now {RENAMED_FIELDS[found[1]]}"
    return None


def _describe_error(error: BaseException) -> str:
    # A KeyError's own text is quoted and escaped.
    told = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(told).split()) or type(error).__name__
    if missing := re.search(r"No such file or directory: '([^']*)'", text):
        return f"--config: no file {missing[1]}"
    if isinstance(error, KeyError | AttributeError):
        if re.fullmatch(r"'.*'", text):  # Quoted and escaped once more.
            text = " ".join(str(ast.literal_eval(text)).split())
        return f"--config: unknown field or preset: {text}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{text}; a field of the config is --config.section.field=value"
    return text if isinstance(error, flags.Error) else f"--config: {text}"


def main(argv: list[str]) -> int:
    """Runs one job; 0 if it is done, 1 if `preflight` says no, 2 with one line on stderr if the input is wrong."""
    try:
        job, config, workdir, asked, where = _parse(argv)
        # JAX and the rest take seconds to import: only once the flags are right.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from autodistill_jax import multihost

        if job not in ("cost", "preflight"):  # They look at no device.
            multihost.join_processes(*where)
        elif where != ("", 0, -1):
            raise UserError(
                f"{job} is for one process; take out --coordinator, --processes, --process"
            )
        from autodistill_jax.jobs import run

        return run.run_job(job, config, workdir, *asked)
    except UserError as error:
        print(f"autodistill_jax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autodistill_jax: stopped; the same command goes on", file=sys.stderr)
        return 130
