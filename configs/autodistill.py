"""AutoDistill: Bayesian search over MobileBERTs, judged by Flash Distillation.

    python -m autodistill_jax run --config=configs/autodistill.py --workdir=W

The second paper (arXiv 2201.08539): its space of 576 Archs of 24 blocks, its transfer at
5 % of the steps for every candidate and at all steps for the best three of the front,
latency asked first. Its teacher, IB-BERT-large, is not public: any BERT will do.

    python -m autodistill_jax run --config=configs/autodistill.py:smoke --workdir=W
"""

from ml_collections import ConfigDict

from autodistill_jax.experiment.base_config import base_config, smoke


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (for TPUs), "smoke" (4 blocks, 10 trials, MiniLM; minutes on two
    cores)."""
    is_smoke = {"": False, "smoke": True}[preset]
    config = base_config()
    config.teacher = "bert-large-uncased"
    config.data.update(
        source="tfds:wikipedia/20230601.en",
        packages=("scipy", "numpy", "matplotlib"),
        row_format="pair",
        max_seq_length=128,
        max_train_rows=0,
        length_buckets=1,
    )
    config.space.update(  # 576 points; MobileBERT itself is (512, 128, 4, 512, 4).
        layers=(24,),
        hidden=(128, 256, 384, 512),
        bottleneck=(64, 96, 128, 160),
        heads=(1, 2, 4, 8),
        ffn=(384, 512, 640),
        ffn_ratio=(),
        stacks=(2, 4, 6),
    )
    config.budget.update(flops_fraction=0.0, latency_fraction=0.5)
    config.distill.update(
        steps=150_000,
        finish_steps=0,
        batch_size=2048,
        learning_rate=4e-5,
        warmup_ratio=0.0,
        optimizer="adamw",
        losses="relation",
        relation_form="paper",
        relation_heads=0,
        mlm_probability=0.15,
        freeze=(),
        dropout=0.1,
        compute_dtype="bfloat16",
        checkpoint_every_steps=1000,
    )
    config.pretrain.update(batch_size=256, compute_dtype="bfloat16")
    config.search.update(
        proxy="flash", sampler="bayes", proxy_rows=2048, batch_size=256
    )
    config.finetune.update(
        tasks=("mnli", "qnli", "qqp", "sst2", "cola", "mrpc", "stsb", "rte", "squad"),
        epochs=20,
        max_seq_length=128,
        learning_rate=2e-5,
        scratch_learning_rate=1e-4,
        teacher_learning_rate=2e-5,
        warmup_ratio=0.0,
        lr_decay=False,
        seeds=5,
        teacher_seeds=5,
        max_train_rows=0,
    )
    if is_smoke:
        smoke(config)
        config.space.update(
            layers=(4,),
            hidden=(128, 192, 256),
            bottleneck=(32, 64, 96),
            heads=(2, 4),
            ffn=(64, 128),
            stacks=(1, 2),
        )
        config.distill.steps = 4
        config.flash_distillation.update(
            block_steps=40, last_stage_steps=40, step_fraction=0.2
        )
        config.search.trials = 10
        config.latency.max_measurements = 1
        config.baselines = ()
    return config
