"""A stand-in for Google's cloud: what do the launch scripts ask of it, and what then?

A `gcloud` that records every call, plays a slice of two workers (folders, where the
commands sent over ssh really run), and fails where a test says so; and a `python` in the
place of the installed one.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
  "-m pip")
    echo "$*" >>"$STUB/pip"
    if [ -e "$STUB/offline" ]; then echo "ERROR: no network" && exit 1; fi ;;
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

# Only what a shell could spoil.
NASTY = (
    "--config.space.layers=(3,)",
    "--config.finetune.tasks=('my task.tsv','b\"c')",
    "--config.data.source=$HOME/* `id` \\ ; exit 3 & #~",
    "--config.search.proxy_task=",
    "--config.teacher=two\nlines",
)


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
        return sorted((x[0], x[1:-1]) for x in (start.split("\37") for start in starts))


def _clone(clone):
    """Of the scripts as they are, committed or not."""
    (clone / "configs").mkdir(parents=True)
    (clone / "launch").mkdir()
    (clone / "autodistill_jax" / "jobs").mkdir(parents=True)
    names = [f"launch/{path.name}" for path in SCRIPTS] + [
        "autodistill_jax/jobs/__init__.py"
    ]
    for name in ("setup.py", "launch/constraints.txt", CONFIG, *names):
        shutil.copy(ROOT / name, clone / name)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", clone]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)


@contextlib.contextmanager
def cloud(folder, clone):
    """A Cloud; the clone is made where it is not there yet. Its jobs end with it."""
    if not clone.exists():
        _clone(clone)
    fake_cloud = Cloud(folder, clone)
    yield fake_cloud
    for pid in fake_cloud.stub.glob("w?/autodistill_job/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def last(err):
    return err.strip().splitlines()[-1]


def on_both_workers(*args):
    words = [*args, f"--workdir={WORKDIR}"]
    return [("w0", words), ("w1", words)]
