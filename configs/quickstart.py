"""A real teacher to a student on two CPU cores, with nothing to download.

./launch/quickstart.sh
= python -m autodistill_jax run --config=configs/quickstart.py --workdir=workdir

Seen on two cores of an AMD EPYC, 2026-11-27, seed 0: 8 min 13 s with the installation;
3 x 384 with ffns of 288, 24 % of the teacher's multiply-adds; similarities .968 (truncated
.914); task .611, from scratch .507, teacher with a linear head .573.
"""

from ml_collections import ConfigDict

from autodistill_jax.experiment.base_config import base_config, smoke


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (minutes on two cores), "smoke" (seconds, for tests)."""
    is_smoke = {"": False, "smoke": True}[preset]
    config = base_config()
    # Of all packages; seen more than once, the second time without the teacher.
    config.data.max_train_rows = 9000
    # Docstrings speak of few things: spans with random words teach the other words.
    config.data.replaced_ratio = 0.6
    config.export.align = True  # Its map to the teacher carries part of what it learns.
    config.finetune.max_train_rows = 1000  # Few labels are what a student is for.
    config.finetune.teacher = "frozen"
    if is_smoke:
        smoke(config)
        config.distill.finish_steps = 4
        config.export.align = False
        config.distill.losses = "relation+10*pooled"  # Both kinds of terms.
        config.space.update(layers=(2, 3), hidden=(64, 192), ffn_ratio=(2.0, 4.0))
        config.search.proxy = "agnostic"
    return config
