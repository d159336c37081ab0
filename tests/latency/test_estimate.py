"""Is a compiled latency the compiler's own figures, added up right, and told as such?"""

import json
import os
from importlib import metadata, util

import jax
import numpy as np
import pytest
from jax import export
from paths import ROOT
from safetensors.numpy import load_file
from tiny_networks import DIMS
from tpu_compile import needs_libtpu

from autodistill_jax.archs.arch import Arch, MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS, cost
from autodistill_jax.cli import main
from autodistill_jax.errors import UserError
from autodistill_jax.interop import huggingface, stablehlo
from autodistill_jax.latency import hlo, measure
from autodistill_jax.latency.chips import CHIPS
from autodistill_jax.latency.estimate import (
    _abstract_weights,
    _min_traffic_bytes,
    _target_device,
    check_target,
    estimate_latency,
    repair_optimal_seconds,
)
from autodistill_jax.models import extract

SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
TINY = Arch(2, 24, 3, 48, 8)

# libtpu 0.0.42.1's text of 7 x tanh(x @ w) + i and a scan over 5 x x @ w, a softmax
# behind them, for v5e; shortened.
HLO = """
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[256,256])->f32[256]}
%fused_computation.6 (param_0.32: f32[256,256]) -> f32[256,256] {
  ROOT %tanh.10 = f32[256,256] tanh(%param_0.32), backend_config={"window_config":{"estimated_cycles":"99999"}}
}
%wide.region_0.2.sunk (wide.arg: (s32[], f32[256,256])) -> (s32[], f32[256,256]) {
  %constant.31..sunk.1 = s32[]{:T(128)} constant(1)
  %copy.15 = f32[256,256]{1,0:T(8,128)S(1)} copy(%g.1), backend_config={"window_config":{"estimated_cycles":"32","iteration_bounds":["1","1"]}}
  ROOT %fusion.25 = f32[256,256]{1,0:T(8,128)S(1)} fusion(%copy.15), kind=kOutput, calls=%fused_computation.6, backend_config={"window_config":{"estimated_cycles":"512"}}
}
%wide.region_1.3.clone.clone (wide.arg.8: (s32[], f32[256,256])) -> pred[] {
  %constant.38 = s32[]{:T(128)} constant(7)
  ROOT %lt.5 = pred[]{:T(512)} compare(%get-tuple-element.101, %constant.38), direction=LT
}
%wide.region_2.6.sunk (wide.arg.0: (s32[], f32[256,256])) -> (s32[], f32[256,256]) {
  %fusion.22 = f32[256,256]{1,0:T(8,128)S(1)} fusion(%g), kind=kOutput, calls=%fused_computation.2, backend_config={"window_config":{"estimated_cycles":"512"}}
}
%wide.region_3.7 (wide.arg.7: (s32[], f32[256,256])) -> pred[] {
  %constant.33 = s32[]{:T(128)} constant(5)
  ROOT %lt.4 = pred[]{:T(512)} compare(%get-tuple-element.84, %constant.33), direction=LT
}
ENTRY %main.10 (x.1: f32[256,256], w.1: f32[256,256]) -> f32[256,256] {
  %constant.19 = s32[]{:T(128)} constant(0)
  %convert.11 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} convert(%w.1), backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"2930"}}
  %copy-start.1 = (f32[256,256]{1,0}, f32[256,256]{1,0}, u32[]{:S(2)}) copy-start(%x.1)
  %while.3 = (s32[]{:T(128)}, f32[256,256]{1,0}) while(%tuple.37), condition=%wide.region_1.3.clone.clone, body=%wide.region_0.2.sunk
  %while.2 = (s32[]{:T(128)}, f32[256,256]{1,0}) while(%tuple.38), condition=%wide.region_3.7, body=%wide.region_2.6.sunk
  ROOT %fusion.8 = f32[256,256]{1,0:T(8,128)} fusion(%while.17), kind=kLoop, calls=%fused_computation.8, backend_config={"window_config":{"estimated_cycles":"3522"}}
}
"""


def test_cycles_are_those_of_what_runs():
    """A loop's as often as it turns; what is inside a fusion is in the fusion's own."""
    assert hlo.count_executed(HLO).cycles == 2930 + 3522 + 7 * (32 + 512) + 5 * 512
    endless = HLO.replace("%constant.33 = s32[]{:T(128)} constant(5)", "")
    with pytest.raises(ValueError, match=r"wide\.region_3\.7"):
        hlo.count_executed(endless)


def test_optimal_seconds_without_the_minus_ones():
    assert np.isclose(repair_optimal_seconds(-4.999185), 0.000815)
    assert repair_optimal_seconds(0.0031) == 0.0031
    assert repair_optimal_seconds(0.8) == 0.8


def test_the_bytes_that_must_move():
    """All weights but the pooler's and the rows that are not looked up, and the result."""
    weights = jax.eval_shape(lambda: _abstract_weights(TINY, DIMS, "float32"))
    unread = (DIMS.vocab - 8) + (DIMS.positions - 8)
    pooler = TINY.hidden + 1
    words = cost(TINY, DIMS)["params"] - TINY.hidden * (unread + pooler)
    words += 8 * TINY.hidden
    assert _min_traffic_bytes(weights, TINY, 1, 8) == 4 * words
    # A larger batch reads more words, and the weights no more than once.
    words += 3 * 8 * TINY.hidden + (32 - 8) * TINY.hidden
    assert _min_traffic_bytes(weights, TINY, 4, 8) == 4 * words


def test_the_chips_are_those_that_jax_knows():
    from jax.experimental.pallas import tpu

    for name, chip in CHIPS.items():
        info = tpu.get_tpu_info_for_chip(tpu.ChipVersion(name), 1)
        cores = 2 if name in ("v4", "v5p") else 1  # JAX counts them one by one.
        assert np.isclose(chip.peak, cores * info.bf16_ops_per_second, rtol=0.02)
        bandwidth = cores * info.mem_bw_bytes_per_second
        assert np.isclose(chip.bandwidth, bandwidth, rtol=0.13)


def test_without_libtpu_the_extra_is_named(monkeypatch, capfd):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    flags = [SMOKE, "--arch=proxy_tiny", "--config.latency.target=v5e"]
    assert main(["autodistill_jax", "latency", *flags]) == 2
    out, err = capfd.readouterr()
    assert not out and "pip install 'autodistill_jax[tpu]'" in err
    assert len(err.strip().splitlines()) == 1


def test_only_known_targets(capfd):
    flags = [SMOKE, "--arch=proxy_tiny", "--config.latency.target=v9"]
    assert main(["autodistill_jax", "latency", *flags]) == 2
    assert "must be one of '', v4i, v4, v5e, v5p, v6e" in capfd.readouterr().err
    with pytest.raises(UserError, match="one of v4i, v4, v5e"):
        check_target("v9")


def estimate(arch, dims=DIMS, target="v5e", batch=1, dtype="float32"):
    return estimate_latency(
        arch, dims, target=target, batch=batch, length=8, dtype=dtype
    )


@needs_libtpu
def test_estimates_side_by_side():
    environ, here = dict(os.environ), jax.numpy.ones(3)
    two, four = estimate(TINY), estimate(Arch(4, 24, 3, 48, 8))
    assert dict(os.environ) == environ
    assert here.devices() == {jax.devices()[0]} and float((here + 1).sum()) == 6
    for record in (two, four):
        assert record["source"] == "compiled" and record["device"] == "v5e"
        assert record["libtpu"] == metadata.version("libtpu")
        three = [
            record[f"{name}_seconds"] for name in ("cycles", "roofline", "optimal")
        ]
        assert record["seconds"] == max(three[:2]) and 0 < min(three) < 1e-3
        assert record["apart"] >= 1 and record["bytes"] > 1000
    # Unrolled: each layer costs its own.
    assert four["cycles_seconds"] > 1.3 * two["cycles_seconds"]
    assert four["roofline_seconds"] > 1.3 * two["roofline_seconds"]


@needs_libtpu
def test_the_roofline_is_the_bytes_that_must_move():
    """At batch 1 the weights' bytes rule; the words that are not looked up are none."""
    wide = estimate(TINY, DIMS._replace(vocab=3000))
    assert np.isclose(
        wide["roofline_seconds"], estimate(TINY)["roofline_seconds"], 0.03
    )
    half = estimate(TINY, dtype="bfloat16")
    assert half["roofline_seconds"] < 0.8 * wide["roofline_seconds"]


@needs_libtpu
@pytest.mark.parametrize("target", ["v5e", "v4i"])
def test_no_pass_reorders_the_word_table(target):
    """Where 128 lanes do not divide the width, that would cost more than all else."""
    odd, even = (
        estimate(Arch(1, width, 1, 32, 8), DIMS._replace(vocab=30522), target)
        for width in (192, 256)
    )
    assert odd["cycles_seconds"] < 1.2 * even["cycles_seconds"]


@needs_libtpu
@pytest.mark.parametrize("target", CHIPS)
def test_every_chip_and_family(target):
    sizes = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=8)
    record = estimate(MobileArch(1, 24, 16, 2, 32, 2), sizes, target)
    assert record["device"] == target and 0 < record["seconds"] < 1e-3


@needs_libtpu
@pytest.mark.parametrize("batch", [1, 8])
def test_a_served_program_compiles_for_v5e(tmp_path, minilm, batch):
    arch = Arch(2, 64, 2, 96, 32)
    params = extract.extract(minilm.params, minilm.arch, arch)
    huggingface.save_pretrained(
        tmp_path / "s", arch, minilm.dims, params, minilm.folder, "mean", True, "",
        lambda _: None,
    )  # fmt: skip
    student = export.deserialize(bytearray(stablehlo.export_program(tmp_path / "s")))
    weights = load_file(tmp_path / "s" / "model.safetensors")
    rows = jax.ShapeDtypeStruct((batch, 16), np.int32)
    args = (weights, rows, rows, rows)
    compiled = measure.lower_for_device(
        student.call, args, _target_device("v5e")
    ).compile()
    hidden = compiled.out_info["last_hidden_state"]
    assert hidden.shape == (batch, 16, 64)
    (device,) = compiled.output_shardings["last_hidden_state"].device_set
    assert device.device_kind == "TPU v5 lite"
    assert hlo.count_executed(compiled.as_text()).cycles > 1000


@needs_libtpu
def test_what_does_not_fit_is_told_with_its_bytes():
    with pytest.raises(
        UserError, match=r"batch 4000000 x 8 does not fit .*\d+G\).*7\.75G"
    ):
        estimate(TINY, target="v4i", batch=4_000_000)


@needs_libtpu
def test_a_chip_that_libtpu_does_not_know(monkeypatch):
    monkeypatch.setitem(CHIPS, "v9", CHIPS["v5e"]._replace(topology="v9:1x1"))
    with pytest.raises(UserError, match="does not know v9 .*try another of v4i, v4"):
        estimate(TINY, target="v9")


@needs_libtpu
def test_job(tmp_path, capfd):
    flags = [SMOKE, "--arch=layers=1,hidden=64,ffn=128,heads=2"]
    flags += ["--config.latency.target=v5e", f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "latency", *flags]) == 0
    out, err = capfd.readouterr()
    record = json.loads(out)
    assert record["source"] == "compiled" and record["device"] == "v5e"
    assert record["cycles_seconds"] > 0 and "compiling for v5e" in err
    table = json.loads((tmp_path / "w" / "search" / "latency.json").read_text())
    assert len(table["compiled"]) == 1 and not table["measured"]
    # Not the device at hand: nothing to calibrate against.
    flags = [flags[0], *flags[2:], "--calibrate"]
    assert main(["autodistill_jax", "latency", *flags]) == 2
    assert "latency.target is v5e and the device at hand CPU" in capfd.readouterr().err
