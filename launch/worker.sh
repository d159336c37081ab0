#!/usr/bin/env bash
# What happens on one worker of a TPU? launch/tpu.sh calls this over ssh.
#   worker.sh setup [gs://... ...]   a Python, .venv with the extra tpu, the data
#   worker.sh poll                   one line: worker HOST STATE ID LAST-LINE-OF-THE-LOG
#   worker.sh start ID JOB ...       the job, detached, unless one runs; then as poll
#   worker.sh stop | logs | failed   ends it; follows its log; the log's end if it failed
# STATE: bare (no setup yet), idle, running, exit-N, or died (no exit status: a reboot).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
job=$HOME/autodistill_job # id, pid, log, status, lock
mkdir -p "$job"

# Every process of the job holds the lock: no id that another may have after a reboot.
running() { ! flock --nonblock "$job/lock" true; }

setup() {
  rm -f .venv/.ready
  # A process of its own: under `if` this one would go on after what fails.
  if ! launch/worker.sh install "$@" >"$HOME/autodistill_setup.log" 2>&1 </dev/null; then
    echo "worker $HOSTNAME: $(tail -n 1 "$HOME/autodistill_setup.log")" \
      "(all of it: ~/autodistill_setup.log there)" >&2
    return 1
  fi
  touch .venv/.ready
}

install() {
  local from
  . launch/venv.sh
  if [ ! -x .venv/bin/python ]; then
    PYTHON=$(interpreter)
    export PYTHON
  fi
  prepare tpu
  for from in "$@"; do
    gcloud storage cp --recursive "$from" .
  done
}

# The images are Ubuntu 22.04, whose Python is 3.10. uv brings one without root, apt and
# its lock, and checks what it downloads.
interpreter() {
  local found uv=$HOME/autodistill_uv
  if found=$(find_python) && "$found" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$found"
    return
  fi
  python3 -m pip install --quiet --upgrade --target "$uv" uv==0.13.9 >&2 || return
  "$uv/bin/uv" python install --no-bin 3.11 >&2 || return
  "$uv/bin/uv" python find --managed-python 3.11
}

poll() {
  local state=idle id=- last=""
  if [ -e "$job/id" ]; then
    id=$(cat "$job/id")
    last=$(tail -n 1 "$job/log" | tr -d '\r' | cut -c -200)
    state=died
  fi
  # The lock first: the status is written before it is let go.
  if running; then
    state=running
  elif [ -e "$job/status" ]; then
    state=exit-$(cat "$job/status")
  elif [ ! -e .venv/.ready ]; then
    state=bare
  fi
  printf 'worker %s %s %s %s\n' "$HOSTNAME" "$state" "$id" "$last"
}

start() {
  local id=$1
  shift
  exec 9>>"$job/lock"
  if flock --timeout 1 9; then
    rm -f "$job/status"
    echo "$id" >"$job/id"
    echo "$(date -u +%FT%TZ) start: $*" >>"$job/log"
    # A session of its own: it outlives the ssh that began it.
    # shellcheck disable=SC2016 # Expanded in the new shell.
    setsid bash -c 'job=$1 code=0
      .venv/bin/python -m autodistill_jax "${@:2}" >>"$job/log" 2>&1 || code=$?
      echo "$code" >"$job/status.new"
      mv "$job/status.new" "$job/status"' worker "$job" "$@" </dev/null >/dev/null 2>&1 &
    echo $! >"$job/pid"
  fi
  exec 9>&-
  poll
}

stop() {
  local pid
  running || return 0
  pid=$(cat "$job/pid")
  kill -- "-$pid" || true
  flock --timeout 30 "$job/lock" true || kill -KILL -- "-$pid"
}

logs() {
  if running; then
    tail -n 100 -F --pid="$(cat "$job/pid")" "$job/log"
  else
    tail -n 100 "$job/log"
  fi
}

failed() {
  if ! running && [ "$(cat "$job/status" 2>/dev/null)" != 0 ]; then
    tail -n 20 "$job/log" | sed "s/^/worker $HOSTNAME: /"
  fi
}

"$@"
