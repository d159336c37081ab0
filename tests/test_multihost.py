"""Do several processes, the first of them writing, make what one alone makes?"""

import json
from pathlib import Path

import jax
import multihost_worker as several
import numpy as np
import pytest
from paths import ROOT
from processes import start_processes as start

from autodistill_jax import multihost
from autodistill_jax.cli import main
from autodistill_jax.errors import UserError

pytestmark = pytest.mark.multihost

FLAGS = [
    f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke",
    "--config.data.packages=('scipy',)",
    "--config.data.max_train_rows=200",
    "--config.space.layers=(1,2)",
    "--config.space.hidden=(96,)",
    "--config.space.ffn_ratio=(1.0,2.0)",
    "--config.distill.batch_size=8",
    "--config.distill.steps=40",
    # Held-out rows that no number of devices divides.
    "--config.search.batch_size=12",
    "--config.search.proxy_rows=31",
    "--config.latency.max_seq_length=8",
    "--config.export.pairs=20",
    "--config.finetune.tasks=()",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several") / "w"


@pytest.fixture(scope="module")
def outcomes(folder):
    """What two processes of two devices say of the same calls."""
    flags = json.dumps(FLAGS)
    program = Path(several.__file__)
    return start(2, folder, flags, program=program, processes=2)


def test_the_first_process_decides_for_all(outcomes):
    for process, outcome in enumerate(outcomes):
        assert outcome["once"] == {
            "results": ["by 0", True, False, "no, says 0"],
            "done": [process] * (process == 0),
        }
        assert outcome["leader_work"] == {
            "results": [0, "one is wrong", 20],
            "worked": [0, 1, 2],
        }


def test_what_cannot_be_is_refused_by_all(outcomes):
    refusals = [outcome["unlike"] for outcome in outcomes]
    assert [status for status, _ in refusals] == [2, 2]
    assert all("different jobs or flags" in line for _, line in refusals)
    assert "seed is 1 here and 0 there" in refusals[1][1]
    for outcome in outcomes:
        status, line = outcome["batch"]
        assert status == 2 and "distill.batch_size 6 does not divide over 4" in line
        status, line = outcome["apart"]
        assert status == 2 and "not the same folder for all 2 processes" in line


def test_told_to_end_all_save_the_same_step(outcomes):
    (status, steps, saved), second = (outcome["preempted"] for outcome in outcomes)
    assert [status, steps, saved] == second
    assert status == 130 and 10 <= steps == saved < 40


def test_a_stopped_run_of_two_processes_is_a_run_of_one(outcomes, folder, tmp_path):
    for process, outcome in enumerate(outcomes):
        assert outcome["latency"][0] == 0
        # Only the first speaks.
        assert [bool(line) for _, line in (outcome["run"], outcome["again"])] == [
            process == 0
        ] * 2
        assert outcome["run"][0] == outcome["again"][0] == 0
    # In other batches: whatever a row is filled up with does not count.
    flags = [*FLAGS, "--config.search.batch_size=5"]
    assert main(["autodistill_jax", "run", f"--workdir={tmp_path / 'w'}", *flags]) == 0
    front, alone = (json.loads((w / "search/front.json").read_text())
                   for w in (folder, tmp_path / "w"))  # fmt: skip
    assert len(front["trials"]) == len(alone["trials"]) == 4
    for trial, alone_trial in zip(front["trials"], alone["trials"]):
        assert trial["arch"] == alone_trial["arch"]
        assert np.isclose(trial["proxy"], alone_trial["proxy"], rtol=1e-5)
        assert trial["flops"] == alone_trial["flops"]
    stopped, through = (loss_sums(w) for w in (folder, tmp_path / "w"))
    assert stopped.keys() >= through.keys()
    for step, total in through.items():
        assert np.isclose(stopped[step], total, rtol=1e-5)
    # The teacher's targets are kept for one process alone.
    files = [
        sorted(str(path.relative_to(w)) for path in w.rglob("*") if path.is_file()
               and not {"checkpoints", "targets"} & set(path.parts))
        for w in (folder, tmp_path / "w")
    ]  # fmt: skip
    assert files[0] == files[1] and "report.html" in files[0]
    # What was refused left nothing.
    assert {path.name for path in folder.parent.glob("w-*")} == {"w-latency"}


def loss_sums(workdir):
    """{step: the sum of the losses up to it}; a line has the mean since the last one."""
    sums, total, last_step = {}, 0.0, 0
    for line in (workdir / "metrics.jsonl").open():
        values = json.loads(line)
        step = values["step"]
        total += values["loss"] * (step - last_step)
        sums[step], last_step = total, step
    return sums


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("here:1", 2, 2), "--process=2 is not below --processes=2"),
        (("here:1", 2, -1), "--process is missing"),
        (("here:1", 0, 0), "--processes is missing"),
        (("here", 2, 0), "--coordinator=here has no port"),
        (("", 2, 0), "it is missing; give all three"),
        (("auto", 2, 0), "it is auto; give all three, or take the two out"),
        (("auto", 0, -1), "does not tell where the processes are"),
    ],
)
def test_processes_that_cannot_be(args, message):
    with pytest.raises(UserError, match=message):
        multihost.join_processes(*args)


def test_one_process_on_a_tpu_that_nothing_tells_of_others(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(multihost, "_on_tpu", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    multihost.join_processes()
    assert multihost.process_count() == 1 and multihost.is_first_process()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="elsewhere give --coordinator"):
        multihost.join_processes()


class FakeService(dict):
    """Of the coordination service what two processes have told each other."""

    key_value_set = dict.__setitem__

    def blocking_key_value_get(self, key, _):
        if key not in self:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self[key]


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("other_error", [None, "None", "OSError('full')"])
def test_a_process_that_fails_alone_ends_all(monkeypatch, process, other_error):
    """What it did not tell in time, or ended otherwise, is no way to go on together."""
    service = FakeService()
    if other_error:
        service[f"autodistill_jax/errors/7/{1 - process}"] = other_error
    monkeypatch.setattr(multihost, "_client", lambda: service)
    monkeypatch.setattr(multihost, "process_count", lambda: 2)
    monkeypatch.setattr(multihost, "is_first_process", lambda: process == 0)
    monkeypatch.setattr(multihost.distributed.global_state, "process_id", process)

    def fails():
        raise OSError("full")

    alike = other_error == "OSError('full')"
    with pytest.raises(OSError if alike else SystemExit):
        multihost._run_together(7, fails, ())
    if process == 0 and other_error != "None":
        with pytest.raises(SystemExit, match="process 1"):
            multihost._run_together(7, lambda: 1, ())
    else:  # One that is done well does not wait for the first.
        assert multihost._run_together(7, lambda: 1, ()) == 1
