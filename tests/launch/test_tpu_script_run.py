"""Does launch/tpu.sh bring a job to its end, through what a cloud does to it?"""

import os
import shutil
import signal
import time

import pytest
from fake_gcloud import CONFIG, JOB, NASTY, OLD_PYTHON, WORKDIR, last, on_both_workers

pytestmark = pytest.mark.e2e


def test_run_makes_sets_up_and_runs_with_every_character(cloud):
    (cloud.stub / "queue").write_text("GONE\nPROVISIONING\n")
    code, _, err = cloud.run("run", *JOB, *NASTY, DATA="gs://b/texts gs://b/*.tsv")
    assert code == 0 and "slice is PROVISIONING" in err, err
    assert cloud.ran() == on_both_workers(*JOB, *NASTY)
    assert last(err).startswith(f"tpu.sh: done, in {WORKDIR}; slice is there and costs")
    steps = ("resources create", "scp", "worker.sh setup", "worker.sh start")
    assert cloud.calls(*steps) == list(steps)
    copies = sorted(c for c in cloud.calls() if c.startswith("storage cp"))
    assert copies == [
        f"storage cp --recursive gs://b/{name} ."
        for name in ("*.tsv", "*.tsv", "texts", "texts")
    ]
    assert (cloud.stub / "w1" / "autodistill_jax" / CONFIG).exists()
    assert len((cloud.stub / "pip").read_text().splitlines()) == 4
    # All is there: the same once more starts the program and does nothing else.
    assert cloud.run("run", *JOB, *NASTY)[0] == 0
    assert cloud.calls(*steps) == [*steps, steps[-1]]


# Calls of a run from nothing, each of which is the first that fails, for good.
CALLS = (
    ("queued-resources describe", "cannot ask about slice in us-west4-a: ERROR"),
    ("queued-resources create", "gcloud did not create slice"),
    ("queued-resources describe", "cannot ask about slice in us-west4-a: ERROR"),
    ("tpu-vm describe", "cannot ask about slice in us-west4-a: ERROR"),
    ("worker.sh poll", "cannot reach the workers of slice over ssh (ERROR"),
    ("tpu-vm scp", "setup failed (see above); slice is there and costs"),
    ("worker.sh setup", "setup failed (see above); slice is there and costs"),
    ("worker.sh start", "the job could not be started (see above); slice is there"),
    ("worker.sh poll", "cannot reach the workers of slice over ssh (ERROR"),
)


@pytest.mark.parametrize("first", range(len(CALLS)))
def test_a_run_tells_which_call_failed(first, cloud):
    (cloud.stub / "fail_from").write_text(f"{first + 1}\n")
    code, _, err = cloud.run("run", *JOB)
    kind, expected = CALLS[first]
    assert kind in cloud.calls()[first]
    assert code == 1 and last(err).startswith(f"tpu.sh: {expected}")
    if (cloud.stub / "state").exists():  # Whoever pays is told how to go on or end it.
        assert "the same command" in last(err)
    # The same command goes on where that one was.
    (cloud.stub / "fail_from").unlink()
    code, _, err = cloud.run("run", *JOB)
    assert code == 0, err
    assert len(cloud.calls("queued-resources create")) == (2 if first == 1 else 1)
    assert cloud.ran() == sorted(on_both_workers(*JOB) * (2 if first == 8 else 1))


@pytest.mark.parametrize("first", [2, 3, 4, 8])
def test_a_call_that_fails_once_while_a_slice_may_cost_is_made_again(first, cloud):
    (cloud.stub / "fail_at").write_text(f"{first + 1}\n")
    code, _, err = cloud.run("run", *JOB)
    assert code == 0 and last(err).startswith("tpu.sh: done, in"), err
    assert len(cloud.calls("queued-resources create")) == 1


# Both workers have begun.
BEGUN = """
until [ "$(tr -cd '\\036' <"$STUB/ran" | wc -c)" -ge 2 ]; do sleep 0.02; done
"""
PREEMPTED = """
: >"$STUB/second"
lose
echo {state} >"$STUB/state"
printf "%s\\n" {node} {node} >"$STUB/node" # However often it is asked.
mkdir "$STUB/w0" # It may answer a little longer, or not at all.
exit 255
"""


@pytest.mark.parametrize(
    "state, node", [("SUSPENDED", "READY"), ("ACTIVE", "PREEMPTED")]
)
def test_a_run_survives_a_preemption(state, node, cloud):
    cloud.write("job", '[ -e "$STUB/second" ] || sleep 60')
    cloud.write("poll-3", BEGUN + PREEMPTED.format(state=state, node=node))
    code, _, err = cloud.run("run", *JOB, *NASTY)
    assert code == 0, err
    assert cloud.ran() == sorted(on_both_workers(*JOB, *NASTY) * 2)
    steps = ("resources create", "worker.sh setup", "worker.sh start")
    kinds = ("resources delete", *steps)
    assert cloud.calls(*kinds) == [*steps, "resources delete", *steps]
    lost = state if state != "ACTIVE" else node
    assert f"slice is {lost} (no more capacity SERVICE); deleting it" in err
    assert f"going on in {WORKDIR}, attempt 2 of 10" in err


def test_a_job_that_is_ended_by_a_preemption_has_not_failed(cloud):
    """Its processes end while the slice still is told to be READY."""
    cloud.write("job", '[ -e "$STUB/second" ] || { : >"$STUB/second"; exit 143; }')
    cloud.write("node", "READY\nREADY\nPREEMPTED\nPREEMPTED\n")
    code, _, err = cloud.run("run", *JOB)
    assert code == 0, err
    assert len(cloud.calls("resources delete")) == 1
    assert "failed" not in err


def test_attempts_are_bounded(cloud):
    for i in range(1, 30):
        cloud.write(f"poll-{i}", PREEMPTED.format(state="SUSPENDED", node="READY"))
    code, _, err = cloud.run("run", *JOB, ATTEMPTS="3")
    assert code == 1
    assert last(err).startswith("tpu.sh: slice was lost 3 times (ATTEMPTS); it is SUSP")
    assert len(cloud.calls("resources create")) == 3


def test_a_users_mistake_is_never_tried_again(cloud):
    message = "autodistill_jax: distill.steps is 0; it must be at least 1"
    # One worker knows; the other was taken along, and is seen first.
    knows = f'until [ -s "$STUB/late" ]; do sleep 0.02; done; echo "{message}"; exit 2'
    cloud.write("job", f"[ $HOME = $STUB/w1 ] || exit 134; {knows}")
    ended = 'until [ -e "$STUB/w%d/autodistill_job/status" ]; do sleep 0.02; done\n'
    cloud.write("poll-2", ended % 0)
    cloud.write("poll-3", 'echo yes >"$STUB/late"\n' + ended % 1)
    code, _, err = cloud.run("run", *JOB)
    assert code == 2 and last(err) == f"tpu.sh: the job cannot run so: {message}"
    assert cloud.ran() == on_both_workers(*JOB) and not cloud.calls("resources delete")


def test_another_failure_is_passed_on_with_the_logs_end(cloud):
    cloud.write(
        "job", "[ $HOME = $STUB/w1 ] || sleep 60; echo Traceback; echo boom; exit 7"
    )
    code, out, err = cloud.run("run", *JOB)
    assert code == 7 and last(err).startswith("tpu.sh: the job failed with status 7")
    assert "worker t1v-w-1: boom" in out and "w-0: boom" not in out
    assert cloud.ran() == on_both_workers(*JOB) and not cloud.calls("resources delete")
    # The other worker does not wait for it for ever.
    code, out, _ = cloud.run("status")
    assert code == 0 and "worker t1v-w-0 died " in out
    assert "worker t1v-w-1 exit-7 " in out and out.endswith("boom\n")


def test_a_worker_that_was_rebooted_is_started_again(cloud):
    cloud.write("job", '[ -e "$STUB/second" ] || sleep 60')
    cloud.write(
        "poll-3",
        BEGUN
        + ': >"$STUB/second"; kill -KILL -- "-$(cat "$STUB/w0/autodistill_job/pid")"',
    )
    code, _, err = cloud.run("run", *JOB)
    assert code == 0 and "a worker has lost the job without a word" in err
    assert cloud.ran() == sorted(on_both_workers(*JOB) * 2)
    assert not cloud.calls("resources delete")


def test_an_interrupt_leaves_the_job_and_the_same_command_finds_it(cloud):
    cloud.write("job", 'until [ -e "$STUB/go" ]; do sleep 0.05; done; echo made')
    started = cloud.start("run", *JOB)
    polls = cloud.stub / "polls"
    until(lambda: polls.exists() and polls.stat().st_size > 2, started)
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert last(err).startswith("tpu.sh: the job goes on; the same command watches it")
    # Another one is refused, and so is new code.
    code, _, err = cloud.run("run", *JOB, "--config.seed=1")
    assert code == 2 and last(err).startswith("tpu.sh: another job runs on slice")
    code, _, err = cloud.run("setup")
    assert code == 2 and "a job runs on slice, with the files it has" in err
    assert "worker t1v-w-1 running " in cloud.run("status")[1]
    size = polls.stat().st_size
    resumed = cloud.start("run", *JOB)
    until(lambda: polls.stat().st_size > size + 1, resumed)
    (cloud.stub / "go").write_text("")
    _, err = resumed.communicate(timeout=30)
    assert resumed.returncode == 0 and "the job runs on slice already" in err
    assert cloud.ran() == on_both_workers(*JOB)
    code, out, _ = cloud.run("logs", WORKER="1")
    assert code == 0 and out.endswith("made\n") and "start: distill --config=" in out


def until(true, started):
    for _ in range(600):
        if true() or started.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_an_old_python_is_not_used(cloud):
    shutil.move(cloud.stub / "bin" / "python3.11", cloud.stub / "new")
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        cloud.write(f"bin/{name}", OLD_PYTHON)
    code, _, err = cloud.run("run", *JOB)
    assert code == 0, err
    assert cloud.ran() == on_both_workers(*JOB)
    uv_calls = (cloud.stub / "uv").read_text().splitlines()
    assert (
        sorted(uv_calls)
        == ["python find --managed-python 3.11"] * 2
        + ["python install --no-bin 3.11"] * 2
    )


def test_an_installation_that_failed_is_not_taken_for_done(cloud):
    cloud.write("offline", "")
    code, _, err = cloud.run("run", *JOB)
    assert code == 1 and last(err).startswith("tpu.sh: setup failed (see above)")
    for i in (0, 1):
        assert f"worker t1v-w-{i}: ERROR: no network (all of it: ~/autodist" in err
    assert cloud.run("status")[1].count(" bare ") == 2
    (cloud.stub / "offline").unlink()
    assert cloud.run("run", *JOB)[0] == 0
    assert cloud.ran() == on_both_workers(*JOB)


def test_what_is_not_committed_is_told(cloud):
    script = cloud.clone / "mine.py"
    script.write_text("")
    _, _, err = cloud.run("run", *JOB)
    script.unlink()
    assert "warning: what is not committed is not copied" in err
