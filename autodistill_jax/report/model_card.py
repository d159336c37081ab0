"""The model card of an exported student."""

from autodistill_jax.archs.arch import AnyArch, describe
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.workdir import find_trial
from autodistill_jax.interop import hf_config, stablehlo
from autodistill_jax.latency import table
from autodistill_jax.report.tables import cost_cells


def model_card(
    experiment: Experiment, arch: AnyArch, front: dict, similarity: dict
) -> str:
    """A student's README.md: what it is, what it costs, how to load it.

    Args:
      experiment: complete.
      arch: of the student.
      front: of `workdir.read_front`.
      similarity: the student's similarity.json.

    Returns:
      Markdown, with the metadata that a hub reads.
    """
    trial = find_trial(front, arch)
    teacher, conditions = front["teacher"], front["latency"]
    dims = experiment.dims
    remote = "" if hf_config.is_stock(arch, dims) else ", trust_remote_code=True"

    aligned = ""
    if experiment.config.export.align:
        aligned = (
            f" Its embeddings are as wide as the teacher's ({experiment.teacher.arch.hidden} "
            "channels) and of the same space: an index of the teacher's is searched with "
            "this student."
        )

    def line(name: str, key: str, scale: float, unit: str, digits: int) -> str:
        teacher_cell, student_cell, share = cost_cells(
            trial, teacher, key, scale, unit, digits
        )
        return f"| {name} | {student_cell} | {teacher_cell} | {share} |"

    rows = "\n".join(
        [
            line("parameters", "params", 1e6, "M", 2),
            line(f"multiply-adds, {conditions['length']} tokens", "flops", 1e9, "G", 3),
            line(f"latency, {conditions['source']}", "latency_ms", 1, "ms", 2),
        ]
    )
    return f"""---
library_name: transformers
tags: [{dims.family}, distillation, autodistill_jax]
---

# {arch.name}

A model of type {dims.family}: {describe(arch)}; distilled by autodistill_jax from
{experiment.teacher_name}.

| | student | teacher | share |
|---|---|---|---|
{rows}

Latency: {table.describe_conditions(conditions)}.
Agreement of its text similarities with the teacher's (Spearman, {similarity["pairs"]}
held-out pairs): {similarity["student"]:.3f}; the same Arch before this distillation:
{similarity["truncated"]:.3f}.{aligned}

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{arch.name}"{remote})
tokenizer = AutoTokenizer.from_pretrained("{arch.name}"{remote})
```

To serve it, `{stablehlo.STABLEHLO_FILE}` is the network as StableHLO for
{", ".join(stablehlo.PLATFORMS)}, without its weights, which stand in `model.safetensors`.
It wants `pip install jax safetensors flatbuffers` and nothing of autodistill_jax:

```python
{stablehlo.loader_snippet(arch.name, dims, experiment.config.export.align)}```

Each new shape is compiled once; a text that is too long is a ValueError ("Error refining
shapes"). The jax that reads the file must be as new as the one that wrote it, and at most
half a year newer by jax's promise; to make it anew, delete it and run the job `export`
again. `export.deserialize(...).mlir_module()` is its text, for others than JAX.
"""
