"""Do the TPU launch scripts ask gcloud for the right things, whatever it answers?

A stand-in `gcloud` records every call, plays a slice of two workers (folders, where the
commands sent over ssh really run), and fails where a test says so. A stand-in `python`
takes the place of the installed one.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

GCLOUD = r"""#!/usr/bin/env bash
# Files of $STUB say what to do; `state` is there while the slice is.
said="$*"
echo "${said//$'\n'/ }" >>"$STUB/calls"
mapfile -t calls <"$STUB/calls"
from=9999 at=""
[ ! -e "$STUB/fail_from" ] || read -r from <"$STUB/fail_from"
[ ! -e "$STUB/fail_at" ] || read -r at <"$STUB/fail_at"
if [ "${#calls[@]}" -ge "$from" ] || [ "${#calls[@]}" = "$at" ]; then
  echo "ERROR: (gcloud) PERMISSION_DENIED: not today" >&2
  exit 1
fi
next() { # The next scripted answer of a file, else the second argument.
  if [ -s "$STUB/$1" ]; then
    head -n 1 "$STUB/$1"
    sed -i 1d "$STUB/$1"
  else
    echo "$2"
  fi
}
lose() { # Every job of the slice ends, and its disks are empty.
  for pid in "$STUB"/w?/autodistill_job/pid; do
    [ ! -e "$pid" ] || kill -KILL -- "-$(cat "$pid")" 2>/dev/null
  done
  rm -rf "$STUB"/w?
}
case $said in
  "config get-value project"*) echo "${PROJECT_OF_GCLOUD-(unset)}" ;;
  "config get-value compute/zone"*) echo "${ZONE_OF_GCLOUD-}" ;;
  "storage cp --recursive gs://"*) touch "${said##*/}" 2>/dev/null; echo copied >&2 ;;
  *failedData*) echo "  no more capacity SERVICE" ;;
  *"queued-resources describe"*)
    answer=$(next queue "$(cat "$STUB/state" 2>/dev/null || echo GONE)")
    if [ "$answer" = GONE ]; then
      echo "ERROR: (gcloud) NOT_FOUND: Resource was not found" >&2
      exit 1
    fi
    echo "Updates are available for some components." >&2
    echo "$answer" ;;
  *"tpu-vm describe"*) next node READY ;;
  *"queued-resources create"*)
    echo ACTIVE >"$STUB/state"
    mkdir "$STUB/w0" "$STUB/w1" ;;
  *"queued-resources delete"*)
    lose
    rm -f "$STUB/state" ;;
  *"tpu-vm scp"*)
    for home in "$STUB"/w?; do cp "$5" "$home/${6#*:}"; done ;;
  *"tpu-vm ssh"*)
    which=all command=""
    for word in "$@"; do
      case $word in
        --worker=*) which=${word#*=} ;;
        --command=*) command=${word#*=} ;;
      esac
    done
    if [[ $command == *" poll"* ]]; then
      echo >>"$STUB/polls"
      event=$STUB/poll-$(wc -l <"$STUB/polls")
      if [ -e "$event" ]; then . "$event"; fi
    fi
    code=0
    for home in "$STUB"/w?; do
      i=${home: -1}
      if [ "$which" = all ] || [ "$which" = "$i" ]; then
        echo "SSH: Attempting to connect to worker $i..." >&2
        (cd "$home" && HOME=$home HOSTNAME=t1v-w-$i bash -c "$command") || code=255
      fi
    done
    exit "$code" ;;
  *) echo "ERROR: no such command: $said" >&2 && exit 2 ;;
esac
"""

PYTHON = r"""#!/usr/bin/env bash
case "$1 ${2:-}" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$*" >>"$STUB/pip" ;;
  "-m autodistill_jax")
    { printf '%s\037' "${HOME##*/}" "${@:3}"; printf '\036'; } >>"$STUB/ran"
    if [ -e "$STUB/job" ]; then . "$STUB/job"; fi ;;
esac
"""

# What Ubuntu 22.04 has: too old, but with pip. uv brings the stand-in above.
OLD_PYTHON = r"""#!/usr/bin/env bash
if [[ "$*" == "-m pip install"*"--target "*" uv=="* ]]; then
  mkdir -p "$HOME/autodistill_uv/bin"
  printf '#!/usr/bin/env bash\necho "$*" >>"$STUB/uv"\n[ $2 = install ] || echo "$STUB/new"\n' \
    >"$HOME/autodistill_uv/bin/uv"
  chmod +x "$HOME/autodistill_uv/bin/uv"
else
  exit 1
fi
"""

CONFIG = "configs/autodistil.py"
JOB = ("distill", f"--config={CONFIG}:base")
WORKDIR = "gs://bucket/x"


class Cloud:
    """A clone, a stand-in cloud, and what became of it."""

    def __init__(self, folder, clone):
        self.stub = folder / "stub"
        self.clone = clone
        (self.stub / "bin").mkdir(parents=True)
        self.write("bin/gcloud", GCLOUD)
        self.write("bin/python3.11", PYTHON)
        self.env = {
            "PATH": f"{self.stub / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "STUB": str(self.stub),
            "INTERVAL": "0",
            "NAME": "slice",
            "PROJECT": "p",
            "ZONE": "us-west4-a",
            "TPU": "v5litepod-16",
            "WORKDIR": WORKDIR,
        }

    def write(self, name, text):
        (self.stub / name).write_text(text)
        (self.stub / name).chmod(0o755)

    def start(self, *args, **env):
        return subprocess.Popen(
            [self.clone / "launch" / "tpu.sh", *args],
            env={k: v for k, v in (self.env | env).items() if v is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args, **env):
        started = self.start(*args, **env)
        out, err = started.communicate(timeout=60)
        return started.returncode, out, err

    def calls(self, *kinds):
        """What was asked of gcloud; with `kinds`, only which of these, in order."""
        path = self.stub / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        if not kinds:
            return lines
        return [kind for line in lines for kind in kinds if kind in line]

    def ran(self):
        """(worker, arguments) of each start of the program."""
        path = self.stub / "ran"
        starts = path.read_text().split("\36")[:-1] if path.exists() else []
        return sorted((x[0], x[1:-1]) for x in (one.split("\37") for one in starts))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Of the scripts as they are, committed or not."""
    made = tmp_path_factory.mktemp("clone")
    (made / "configs").mkdir()
    (made / "launch").mkdir()
    names = [f"launch/{path.name}" for path in SCRIPTS]
    for name in ("setup.py", "launch/constraints.txt", CONFIG, *names):
        shutil.copy(ROOT / name, made / name)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", made]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return made


@pytest.fixture
def cloud(tmp_path, clone):
    made = Cloud(tmp_path, clone)
    yield made
    for pid in made.stub.glob("w?/autodistill_job/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def last(err):
    return err.strip().splitlines()[-1]


def both(*args):
    words = [*args, f"--workdir={WORKDIR}"]
    return [("w0", words), ("w1", words)]


REFUSED = {
    "no command": ([], {}, "usage: NAME="),
    "unknown command": (["start"], {}, "usage: NAME="),
    "arguments": (["create", "more"], {}, "create takes no arguments (more)"),
    "no TPU": (["create"], {"TPU": None}, "TPU is not set; set it to an acc"),
    "no type": (["create"], {"TPU": "v5litepod"}, "TPU=v5litepod is no acc"),
    "preflight's name": (["create"], {"TPU": "v5e-16"}, "v5e is v5litepod-16"),
    "unknown type": (["create"], {"TPU": "v9-8"}, "v9-8: no runtime version is"),
    "name": (["create"], {"NAME": "My TPU"}, "NAME=My TPU must be small letters"),
    "spot": (["create"], {"SPOT": "yes"}, "SPOT=yes must be 1"),
    "interval": (["create"], {"INTERVAL": "soon"}, "INTERVAL=soon must be whole"),
    "attempts": (["create"], {"ATTEMPTS": "0"}, "ATTEMPTS=0 must be at least 1"),
    "worker": (["logs"], {"WORKER": "all"}, "WORKER=all must be a worker's number"),
    "no project": (["create"], {"PROJECT": None}, "gcloud config set project my-"),
    "no zone": (["delete"], {"ZONE": None}, "gcloud config set compute/zone us-"),
    "no job": (["run"], {}, "run needs a job: run JOB --config=FILE.py"),
    "flag for a job": (["run", "--config=x.py"], {}, "run needs a job"),
    "no config": (["run", "distill"], {}, "run needs --config=FILE.py"),
    "no such config": (["run", "distill", "--config=x.py:y"], {}, "x.py:y: no such"),
    "a workdir": (["run", *JOB, "--workdir=gs://b/y"], {}, "give the workdir as WORKD"),
    "no workdir": (["run", *JOB], {"WORKDIR": None}, "WORKDIR is not set"),
    "local workdir": (["run", *JOB], {"WORKDIR": "/w"}, "16 has several hosts, which"),
    "relative": (["run", *JOB], {"WORKDIR": "w", "TPU": "v4-8"}, "an absolute path on"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_before_anything_is_asked_for(name, cloud):
    args, env, expected = REFUSED[name]
    code, out, err = cloud.run(*args, **env)
    assert code == 2 and not out
    assert err.count("\n") == 1 and err.startswith("tpu.sh: ") and expected in err
    assert all(call.startswith("config get-value") for call in cloud.calls())


def test_without_gcloud(cloud):
    bare = cloud.stub / "bare"
    bare.mkdir()
    for name in ("bash", "dirname"):
        (bare / name).symlink_to(shutil.which(name))
    code, _, err = cloud.run("status", PATH=str(bare))
    assert code == 2 and err.count("\n") == 1
    assert "gcloud is not installed; see https://" in err


def test_create_asks_once_waits_and_goes_on(cloud):
    (cloud.stub / "queue").write_text("GONE\nWAITING_FOR_RESOURCES\nPROVISIONING\n")
    env = {"PROJECT": None, "ZONE": None, "NETWORK": "n", "CREATE_FLAGS": "--a --b=c"}
    env |= {"PROJECT_OF_GCLOUD": "mine", "ZONE_OF_GCLOUD": "eu-a"}
    code, _, err = cloud.run("create", **env)
    assert code == 0, err
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "READY"):
        assert f"slice is {state}" in err
    (asked,) = [call for call in cloud.calls() if "queued-resources create" in call]
    assert asked == (
        "compute tpus queued-resources create slice --node-id=slice "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--network=n --a --b=c --project=mine --zone=eu-a --quiet"
    )
    code, _, err = cloud.run("create", SPOT="0")
    assert code == 0 and "slice is there already" in err
    assert len(cloud.calls("queued-resources create")) == 1


RUNTIMES = {
    "v2-8": "tpu-ubuntu2204-base",
    "v4-32": "tpu-ubuntu2204-base",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-256": "v2-alpha-tpuv6e",
}


def test_the_runtime_of_each_type(cloud):
    for kind, runtime in RUNTIMES.items():
        _, out, _ = cloud.run("--dry-run", "create", TPU=kind, SPOT="0")
        assert f"--accelerator-type={kind} --runtime-version={runtime} --project" in out
    _, out, _ = cloud.run("--dry-run", "create", TPU="v9-8", RUNTIME="r")
    assert "--runtime-version=r " in out


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_why_there_is_no_slice(state, cloud):
    (cloud.stub / "queue").write_text(f"GONE\nWAITING_FOR_RESOURCES\n{state}\n")
    code, _, err = cloud.run("create")
    assert code == 1
    assert last(err) == (
        f"tpu.sh: slice is {state} (no more capacity SERVICE); run delete, then create"
    )


# Only what a shell could spoil.
NASTY = (
    "--config.space.layers=(3,)",
    "--config.finetune.tasks=('my task.tsv','b\"c')",
    "--config.data.source=$HOME/* `id` \\ ; exit 3 & #~",
    "--config.search.task=",
    "--config.teacher=two\nlines",
)


def test_run_makes_sets_up_and_runs_with_every_character(cloud):
    (cloud.stub / "queue").write_text("GONE\nPROVISIONING\n")
    code, _, err = cloud.run("run", *JOB, *NASTY, DATA="gs://b/texts gs://b/*.tsv")
    assert code == 0 and "slice is PROVISIONING" in err, err
    assert cloud.ran() == both(*JOB, *NASTY)
    assert last(err).startswith(f"tpu.sh: done, in {WORKDIR}; slice is there and costs")
    steps = ("resources create", "scp", "worker.sh setup", "worker.sh start")
    assert cloud.calls(*steps) == list(steps)
    assert (
        cloud.calls("storage cp --recursive gs://b/texts .")
        and (
            cloud.stub / "w1" / "autodistill_jax" / "configs" / "autodistil.py"
        ).exists()
    )
    assert len((cloud.stub / "pip").read_text().splitlines()) == 4
    # All is there: the same once more starts the program and does nothing else.
    assert cloud.run("run", *JOB, *NASTY)[0] == 0
    assert cloud.calls(*steps) == [*steps, steps[-1]]


def test_a_dry_run_prints_exactly_what_runs(cloud):
    code, out, err = cloud.run("--dry-run", "run", *JOB, *NASTY)
    assert code == 0 and not err and not cloud.calls() and not cloud.ran()
    # Pasted into a shell it is what run does; there polls may come several times.
    subprocess.run(
        ["bash"], input=out, text=True, env=cloud.env, cwd=cloud.clone, check=False
    )
    pasted = distinct(cloud.calls())
    again = Cloud(cloud.stub.parent / "again", cloud.clone)
    code, _, err = again.run("run", *JOB, *NASTY)
    assert code == 0, err
    there = str(again.stub.parent), str(cloud.stub.parent)
    assert pasted == distinct(call.replace(*there) for call in again.calls())
    assert cloud.ran() == again.ran() == both(*JOB, *NASTY)


def distinct(calls):
    """Each as often as it comes after another one."""
    return [call for call, _ in itertools.groupby(calls)]


@pytest.mark.parametrize("command", ["create", "setup", "logs", "status", "delete"])
def test_a_dry_run_of_the_others_runs_nothing(command, cloud):
    code, out, err = cloud.run("--dry-run", command, PROJECT=None, ZONE=None)
    assert code == 0 and not err and not cloud.calls()
    told = out.splitlines()
    assert told[0] == "PROJECT=$(gcloud config get-value project)"
    assert told[1] == "ZONE=$(gcloud config get-value compute/zone)"
    ours = '"--project=$PROJECT" "--zone=$ZONE" --quiet'
    assert all(x.endswith(ours) for x in told[2:] if x.startswith("gcloud"))


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
    assert cloud.ran() == sorted(both(*JOB) * (2 if first == 8 else 1))


@pytest.mark.parametrize("first", [2, 3, 4, 8])
def test_a_call_that_fails_once_while_a_slice_may_cost_is_made_again(first, cloud):
    (cloud.stub / "fail_at").write_text(f"{first + 1}\n")
    code, _, err = cloud.run("run", *JOB)
    assert code == 0 and last(err).startswith("tpu.sh: done, in"), err
    assert len(cloud.calls("queued-resources create")) == 1


OTHERS = {
    "create": ("cannot ask about", "gcloud did not create", "cannot ask about"),
    "setup": ("cannot ask", "cannot ask", "cannot reach", "setup fai", "setup fai"),
    "logs": ("no log from worker 0 of slice (see above)",),
    "status": ("cannot ask about", "cannot ask about", "cannot reach its workers"),
    "delete": (
        "cannot ask",
        "cannot ask",
        "gcloud did not delete slice",
        "slice is st",
    ),
}


@pytest.mark.parametrize("command", OTHERS)
def test_every_other_command_tells_which_call_failed(command, cloud):
    for first, expected in enumerate(OTHERS[command], 1):
        one = Cloud(cloud.stub.parent / f"{first}", cloud.clone)
        if command != "create":
            assert one.run("create")[0] == 0
        if command == "logs":
            assert one.run("setup")[0] == 0
        before = len(one.calls())
        (one.stub / "fail_from").write_text(f"{before + first}\n")
        code, _, err = one.run(command)
        assert code == 1 and last(err).startswith(f"tpu.sh: {expected}"), (first, err)
        (one.stub / "fail_from").unlink()
        whole = len(one.calls())
        code, _, err = one.run(command)
        # Without a job there is no log.
        assert code == (1 if command == "logs" else 0), err
        assert len(one.calls()) > whole


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
    assert cloud.ran() == sorted(both(*JOB, *NASTY) * 2)
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
    told = "autodistill_jax: distill.steps is 0; it must be at least 1"
    # One worker knows; the other was taken along, and is seen first.
    knows = f'until [ -s "$STUB/late" ]; do sleep 0.02; done; echo "{told}"; exit 2'
    cloud.write("job", f"[ $HOME = $STUB/w1 ] || exit 134; {knows}")
    ended = 'until [ -e "$STUB/w%d/autodistill_job/status" ]; do sleep 0.02; done\n'
    cloud.write("poll-2", ended % 0)
    cloud.write("poll-3", 'echo yes >"$STUB/late"\n' + ended % 1)
    code, _, err = cloud.run("run", *JOB)
    assert code == 2 and last(err) == f"tpu.sh: the job cannot run so: {told}"
    assert cloud.ran() == both(*JOB) and not cloud.calls("resources delete")


def test_another_failure_is_passed_on_with_the_logs_end(cloud):
    cloud.write(
        "job", "[ $HOME = $STUB/w1 ] || sleep 60; echo Traceback; echo boom; exit 7"
    )
    code, out, err = cloud.run("run", *JOB)
    assert code == 7 and last(err).startswith("tpu.sh: the job failed with status 7")
    assert "worker t1v-w-1: boom" in out and "w-0: boom" not in out
    assert cloud.ran() == both(*JOB) and not cloud.calls("resources delete")
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
    assert cloud.ran() == sorted(both(*JOB) * 2)
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
    before = polls.stat().st_size
    again = cloud.start("run", *JOB)
    until(lambda: polls.stat().st_size > before + 1, again)
    (cloud.stub / "go").write_text("")
    _, err = again.communicate(timeout=30)
    assert again.returncode == 0 and "the job runs on slice already" in err
    assert cloud.ran() == both(*JOB)
    code, out, _ = cloud.run("logs", WORKER="1")
    assert code == 0 and out.endswith("made\n") and "start: distill --config=" in out


def until(true, started):
    for _ in range(600):
        if true() or started.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_status_and_delete_where_nothing_is(cloud):
    code, out, _ = cloud.run("status")
    assert code == 0 and out == (
        "slice: no such queued resource in us-west4-a of p; nothing costs\n"
    )
    code, _, err = cloud.run("delete")
    assert code == 0 and "nothing to delete" in err
    assert not cloud.calls("resources delete")


def test_delete_waits_for_what_is_being_suspended(cloud):
    assert cloud.run("create")[0] == 0
    at = len(cloud.calls()) + 3
    (cloud.stub / "fail_at").write_text(f"{at}\n")
    code, _, err = cloud.run("delete")
    assert code == 0 and last(err).startswith("tpu.sh: slice is deleted")
    assert len(cloud.calls("resources delete --force")) == 0
    assert not (cloud.stub / "state").exists()


def test_an_old_python_is_not_used(cloud):
    shutil.move(cloud.stub / "bin" / "python3.11", cloud.stub / "new")
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        cloud.write(f"bin/{name}", OLD_PYTHON)
    code, _, err = cloud.run("run", *JOB)
    assert code == 0, err
    assert cloud.ran() == both(*JOB)
    asked = (cloud.stub / "uv").read_text().splitlines()
    assert (
        sorted(asked)
        == ["python find --managed-python 3.11"] * 2
        + ["python install --no-bin 3.11"] * 2
    )


def test_what_is_not_committed_is_told(cloud):
    mine = cloud.clone / "mine.py"
    mine.write_text("")
    _, _, err = cloud.run("run", *JOB)
    mine.unlink()
    assert "warning: what is not committed is not copied" in err


def test_scripts_are_clean():
    found = shutil.which("shellcheck", path=Path(sys.executable).parent) or (
        shutil.which("shellcheck")
    )
    if not found:
        pytest.skip("shellcheck is not installed; the extra [test] brings it")
    subprocess.run([found, *SCRIPTS], check=True, cwd=ROOT)
