"""One student out of a SuperLM of two, and the same by other methods: one table.

    python -m autodistill_jax run --config=configs/baselines.py --workdir=W \\
      --config.data.source=FOLDER --config.finetune.glue_dir=GLUE

The same teacher, text and fine-tuning for all, in the seconds of the student or in its
steps; each method at the rate that suits it on held-out text, whose trials are not in its
seconds; costs and scores in table.md and report.html. Goes on where it stopped; other
seeds by --config.seed in another workdir, and tests/benchmarks/methods.py for a table of
them all.
"""

from ml_collections import ConfigDict

from autodistill_jax.experiment.base_config import base_config, smoke

_SPREAD = ("", "-even")  # Layers by evidence, or evenly spread.


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (the comparison), "smoke" (a minute)."""
    is_smoke = {"": False, "smoke": True}[preset]
    config = base_config()
    # Two students part the SuperLM's seconds; baselines stand beside the first.
    config.budget.flops_fraction = (0.13, 0.25)
    config.distill.update(steps=40, finish_steps=250)
    config.distill.mlm_head_steps = 600  # MiniLM has no head; DistilBERT needs one.
    config.export.align = True  # Whatever trains a map to the teacher is scored by it.
    config.baselines = (
        # In equal seconds, in all of the SuperLM's, and in equal steps.
        *("twin-seconds", "twin-all_seconds", "twin"),
        *("before_finish", "truncated", "static", "scratch"),
        *(
            f"layer_reduction-{n}{spread}-seconds"
            for n in (3, 2, 1)
            for spread in _SPREAD
        ),
        *("minilmv2-seconds", "minilmv2_pooled-seconds", "pooled_alone-seconds"),
        "distilbert-seconds",
    )
    config.baseline_learning_rates = (3e-4, 1e-3, 2.8e-3)
    config.finetune.tasks = ("stsb",)
    config.finetune.scratch_learning_rate = 6e-4
    if is_smoke:
        smoke(config)
        config.budget.flops_fraction = 0.0
        config.export.align = False
        config.space.update(layers=(2, 3), hidden=(128, 192), ffn_ratio=(4.0,))
        config.search.fixed_arch = "layers=3,hidden=192,heads=6,ffn=768"
        config.search.proxy = "agnostic"
        config.distill.losses = "relation+3*pooled"  # Both kinds of terms.
        config.distill.steps = 8
        config.baselines = ("twin", "minilmv2", "distilbert", "truncated", "scratch")
        config.baseline_learning_rates = ()
        config.finetune.tasks = ("sst2", "stsb")
        config.finetune.seeds = 2
    return config
