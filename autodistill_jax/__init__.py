"""autodistill_jax: the best student of a BERT-like teacher for a budget.

    import autodistill_jax as ad

    config = ad.base_config()
    config.budget.flops_fraction = 0.5
    result = ad.run(config, "workdir")
    student = ad.load_student(result.student)

The names below are loaded when they are used: the import takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from autodistill_jax.archs.arch import Arch, MobileArch
    from autodistill_jax.archs.budget import Budget
    from autodistill_jax.archs.cost import cost
    from autodistill_jax.archs.space import Space
    from autodistill_jax.errors import UserError
    from autodistill_jax.experiment.base_config import base_config, smoke
    from autodistill_jax.experiment.config_file import load_config
    from autodistill_jax.interop.embedding import embed
    from autodistill_jax.interop.huggingface import load_pretrained as load_student
    from autodistill_jax.interop.huggingface import load_pretrained as load_teacher
    from autodistill_jax.jobs.run import run
    from autodistill_jax.latency.measure import device_name
    from autodistill_jax.models.extract import extract
    from autodistill_jax.report.result import Result

# public name -> where it is
_HOMES = {
    "Arch": "archs.arch:Arch",
    "Budget": "archs.budget:Budget",
    "MobileArch": "archs.arch:MobileArch",
    "Result": "report.result:Result",
    "Space": "archs.space:Space",
    "UserError": "errors:UserError",
    "base_config": "experiment.base_config:base_config",
    "cost": "archs.cost:cost",
    "device_name": "latency.measure:device_name",
    "embed": "interop.embedding:embed",
    "extract": "models.extract:extract",
    "load_config": "experiment.config_file:load_config",
    "load_student": "interop.huggingface:load_pretrained",
    "load_teacher": "interop.huggingface:load_pretrained",
    "run": "jobs.run:run",
    "smoke": "experiment.base_config:smoke",
}

__all__ = [
    "Arch",
    "Budget",
    "MobileArch",
    "Result",
    "Space",
    "UserError",
    "base_config",
    "cost",
    "device_name",
    "embed",
    "extract",
    "load_config",
    "load_student",
    "load_teacher",
    "run",
    "smoke",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    module = importlib.import_module(f"{__name__}.{module}")
    globals()[name] = getattr(module, attribute)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
