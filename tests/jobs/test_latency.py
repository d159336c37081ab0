"""Does the job `latency` say what one Arch takes, keep it, and correct predictions?"""

import json

import jax
import pytest
from paths import ROOT

from autodistill_jax.archs.cost import cost
from autodistill_jax.cli import main
from autodistill_jax.latency import calibration, chips, estimate

SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"


def job(capfd, *flags):
    assert (
        main(
            [
                "autodistill_jax",
                "latency",
                SMOKE,
                "--config.latency.max_seq_length=8",
                *flags,
            ]
        )
        == 0
    )
    out, err = capfd.readouterr()
    assert len(out.strip().splitlines()) == 1
    return json.loads(out), err


def test_job_measures_and_keeps(tmp_path, capfd):
    flags = ["--arch=layers=1,hidden=64,ffn=128,heads=2", f"--workdir={tmp_path / 'w'}"]
    record, err = job(capfd, *flags)
    assert list(record)[:7] == [
        "arch",
        "seconds",
        "source",
        "device",
        "batch",
        "length",
        "dtype",
    ]
    assert record["arch"] == "layers=1,hidden=64,heads=2,ffn=128"
    assert record["source"] == "measured" and record["weights"] == "random"
    assert record["runs"] == 10 and record["minimum"] <= record["seconds"]
    assert "measuring on" in err and "outside the space" in err
    repeated, err = job(capfd, *flags)
    assert repeated == record and "measuring" not in err
    # Another batch is another latency; a workdir is not needed.
    batched, err = job(capfd, flags[0], "--config.latency.batch=2")
    assert batched["batch"] == 2 and "measuring on" in err


def test_job_of_a_mobilebert(capfd):
    arch = "layers=1,hidden=32,bottleneck=16,heads=2,ffn=32,stacks=2"
    record, _ = job(capfd, f"--arch={arch}")
    assert record["arch"] == arch and record["seconds"] > 0


def stand_in(monkeypatch):
    """A v5e that is this CPU, and a compiler that says 1 s a teramultiply-add."""

    def conditions(target, batch, length, dtype):
        record = {"source": "compiled", "device": target, "libtpu": "0", "batch": batch}
        return record | {"length": length, "dtype": dtype}

    def fake_estimate(arch, sizes, **settings):
        seconds = cost(arch, sizes, settings["length"])["flops"] / 1e12
        names = ("", "cycles_", "roofline_", "optimal_")
        three = {f"{name}seconds": seconds for name in names}
        return {**three, "apart": 1.0, **conditions(**settings)}

    chip = chips.CHIPS["v5e"]._replace(kind=jax.devices()[0].device_kind)
    monkeypatch.setitem(chips.CHIPS, "v5e", chip)
    monkeypatch.setattr(estimate, "check_target", lambda target: None)
    monkeypatch.setattr(estimate, "compiled_conditions", conditions)
    monkeypatch.setattr(estimate, "estimate_latency", fake_estimate)


def test_job_calibrates(tmp_path, capfd, monkeypatch):
    flags = [
        f"--workdir={tmp_path / 'w'}",
        "--calibrate",
        "--config.space.hidden=(32,64)",
    ]
    fit, err = job(capfd, *flags)
    assert fit["archs"] == 6 and fit["unseen"] == 3 and len(fit["points"]) == 6
    assert [point["seen"] for point in fit["points"]] == [True, False] * 3
    assert fit["mape"] >= 0 and -1 <= fit["kendall"] <= 1
    assert "Kendall" in err and "has not seen" in err
    table = json.loads((tmp_path / "w" / "search" / "latency.json").read_text())
    assert table["corrections"] == [fit] and len(table["measured"]) == 6
    # On a TPU, what is compiled for it is corrected instead.
    stand_in(monkeypatch)
    flags = [flags[0], "--config.latency.target=v5e", flags[2]]
    fit, err = job(capfd, *flags, "--calibrate")
    assert "measuring" not in err and "compiling for v5e: 6" in err
    assert fit["source"] == "compiled" and list(fit["coefficients"])[1:] == ["seconds"]
    raw = fit["uncorrected"]["seconds"]
    assert raw["kendall"] == fit["kendall"]  # A straight line orders nothing anew.
    estimated, _ = job(capfd, *flags, "--arch=layers=2,hidden=64,heads=2,ffn=128")
    expected = calibration.predict_latency(fit["coefficients"], estimated)
    assert estimated["corrected_seconds"] == expected


BAD = {
    "no arch": ([], "--arch is missing; give --arch=layers=3"),
    "unknown name": (["--arch=enormous"], "known by name: agnostic"),
    "no runs": (["--arch=minilm", "--config.latency.runs=1"], "runs is 1; it must be"),
    "too long": (
        ["--arch=minilm", "--config.latency.max_seq_length=513"],
        "latency.max_seq_length is 513, more than the teacher's 512 positions",
    ),
    "calibrate nowhere": (["--calibrate"], "--calibrate needs --workdir"),
    "few to fit": (
        ["--arch=minilm", "--config.latency.calibrate=4"],
        "latency.calibrate is 4; it must be at least 6",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_of_the_job(name, capfd):
    more, expected = BAD[name]
    assert main(["autodistill_jax", "latency", SMOKE, *more]) == 2
    out, err = capfd.readouterr()
    lines = err.strip().splitlines()
    assert not out and len(lines) == 1, err
    assert lines[0].startswith("autodistill_jax: ") and expected in lines[0]


def test_calibrate_is_not_for_other_jobs(tmp_path, capfd):
    flags = [SMOKE, "--calibrate", "--arch=minilm"]
    assert main(["autodistill_jax", "cost", *flags]) == 2
    assert "--calibrate is of the job latency, not of cost" in capfd.readouterr().err
    flags += [f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "latency", *flags]) == 2
    assert "take --arch out" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()
