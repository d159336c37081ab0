"""A packaged teacher, text of your own and GLUE: MiniLM-L6 on a CPU or one device.

    python -m autodistill_jax run --config=configs/minilm.py --workdir=W \\
      --config.data.source=FOLDER --config.finetune.glue_dir=GLUE \\
      --config.finetune.tasks="('sst2',)"

Seen with 3,090 Wikipedia articles and SST-2, as this config was on 2026-11-21 (800 steps of
the SuperLM in batches of 32, no finish; 2 CPU cores, 17 minutes, one seed): 4 x 320, 47 % of
the teacher's multiply-adds; similarities .677 (truncated .328); SST-2 dev .818, from scratch
.741, teacher .854.
"""

from ml_collections import ConfigDict

from autodistill_jax.experiment.base_config import base_config, smoke


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (longer than the quickstart), "smoke" (seconds), "rank" (which
    proxy to trust: 24 Archs of a wider space, each fine-tuned on STS-B)."""
    is_smoke = {"": False, "smoke": True, "rank": False}[preset]
    config = base_config()
    config.space.hidden = (192, 256, 320, 384)
    config.budget.flops_fraction = 0.5
    config.distill.update(steps=60, finish_steps=700)
    config.finetune.max_seq_length = 64
    if is_smoke:
        smoke(config)
        config.space.update(layers=(2, 3), hidden=(64, 192), ffn_ratio=(2.0, 4.0))
        config.search.proxy = "agnostic"
    if preset == "rank":
        config.space.update(layers=(2, 3, 4, 6), heads=(4, 8, 12))
        config.distill.finish_steps = 0
        config.search.proxy_steps = 20
        config.finetune.update(tasks=("stsb",), max_seq_length=32, max_train_rows=1024)
        config.rank.update(archs=24, flops_bins=4, seeds=2, task="stsb")
        config.rank.proxies = (
            *("agnostic", "relation_minilmv2", "relation_paper", "relation_code"),
            *("pooled", "hidden", "similarity", "probe", "proxy"),
        )
    return config
