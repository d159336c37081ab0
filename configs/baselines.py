"""One student by several methods: out of a SuperLM, and the baselines, in one table.

    python -m autodistill_jax run --config=configs/baselines.py --workdir=W \\
      --config.data.source=FOLDER --config.finetune.glue_dir=GLUE

The same teacher, Arch, text, steps and fine-tuning for all; table.md and report.html.
Seen with Wikipedia (2015) and GLUE on two cores of an AMD EPYC, 2026-11-21, seed 0, in
batches of 32 and from plain slices of the teacher, 67 minutes: STS-B without fine-tuning .786 (twin .798, truncated .647, scratch .545, MiniLMv2
.659, DistilBERT .658, teacher .867), fine-tuned .834 (.841, .795, .714, .800, .775, .895);
SST-2 .783 (.785, .783, .739, .789, .781, .854).
"""

from ml_collections import ConfigDict

from autodistill_jax.experiment.base_config import base_config, smoke


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (the comparison), "smoke" (a minute)."""
    is_smoke = {"": False, "smoke": True}[preset]
    config = base_config()
    config.space.ffn_ratio = (3.0, 4.0)
    config.budget.flops_fraction = 0.0
    config.distill.steps = 1000
    config.distill.finish_steps = 0  # As many steps for all.
    config.distill.losses = "relation+3*pooled"
    config.distill.mlm_head_steps = 600  # MiniLM has no head; two methods need one.
    config.search.fixed_arch = "layers=3,hidden=192,heads=6,ffn=768"
    config.baselines = ("twin", "minilmv2", "distilbert", "truncated", "scratch")
    config.finetune.tasks = ("sst2", "stsb")
    config.finetune.scratch_learning_rate = 6e-4
    config.finetune.seeds = 3
    if is_smoke:
        smoke(config)
        config.space.update(layers=(2, 3), hidden=(128, 192), ffn_ratio=(4.0,))
        config.distill.steps = 8
        config.search.proxy = "agnostic"
        config.finetune.seeds = 2
    return config
