"""The jobs that a user can ask for: one table of them, and a file each."""

import importlib
from collections.abc import Callable
from typing import Any

# name -> (what it does, its function in jobs/NAME.py). The stages of `run` stand in its
# order, from pretrain to report. The functions are loaded when they are called: JAX and
# the rest take seconds to import.
JOBS = {
    "run": ("all that the config asks for, in the order below", "run_stages"),
    "pretrain": (
        "train a teacher of your own on text: MLM, next sentences",
        "run_pretrain",
    ),
    "distill": ("train the SuperLM of each space from the teacher", "run_distill"),
    "search": ("the Archs under the budget -> the front, and one chosen", "run_search"),
    "transfer": (
        "with search.proxy=flash: the best Archs, block by block",
        "run_transfer",
    ),
    "finish": (
        "with distill.finish_steps: the chosen Arch trained alone at the end",
        "run_finish",
    ),
    "export": ("the chosen Arch -> a Hugging Face folder", "run_export"),
    "baselines": (
        "the chosen Arch by other methods, same teacher and text",
        "run_baselines",
    ),
    "finetune": ("all of them on labelled tasks -> one table", "run_finetune"),
    "rank": ("do the proxies order Archs as fine-tuning does?", "run_rank"),
    "report": ("report.html from what is in the workdir", "run_report"),
    "latency": ("seconds of one Arch as JSON, measured or for a TPU", "run_latency"),
    "preflight": ("memory, time, collectives on a TPU slice, as JSON", "run_preflight"),
    "cost": ("params and FLOPs of one Arch, as JSON: --arch=minilm", "run_cost"),
    "config": (
        "the whole config as text, what differs from the base marked",
        "run_config",
    ),
}
STAGES = tuple(JOBS)[1:11]


def job_function(job: str) -> Callable[..., Any]:
    """The function of a job of `JOBS`; loads what it needs."""
    module = importlib.import_module(f"autodistill_jax.jobs.{job}")
    return getattr(module, JOBS[job][1])
