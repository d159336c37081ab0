#!/usr/bin/env bash
# How does a job get onto a Cloud TPU slice, and how is the slice given back?
#   NAME=... ZONE=... PROJECT=... TPU=v5litepod-16 ./launch/tpu.sh [--dry-run] COMMAND
#     create   ask for the slice (a queued resource) and wait until it is there
#     setup    copy the committed files to every worker and install them
#     run JOB --config=FILE.py[:preset] [--config.section.field=value ...]
#              the job on every worker, in WORKDIR=gs://..., watched to its end; what of
#              create and setup is missing comes first, after a preemption once more
#     logs     follow the log of one worker (WORKER=0)
#     status   the slice, and what its workers do
#     delete   end it all; nothing costs any more
# --dry-run prints what would run, and runs nothing. launch/README.md has all variables.
set -euo pipefail

NAME=${NAME:-autodistill} ZONE=${ZONE:-} PROJECT=${PROJECT:-} TPU=${TPU:-}
RUNTIME=${RUNTIME:-} SPOT=${SPOT:-1} WORKDIR=${WORKDIR:-} DATA=${DATA:-}
NETWORK=${NETWORK:-} SUBNETWORK=${SUBNETWORK:-} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
CREATE_FLAGS=${CREATE_FLAGS:-} SSH_FLAGS=${SSH_FLAGS:-} WORKER=${WORKER:-0}
INTERVAL=${INTERVAL:-30} ATTEMPTS=${ATTEMPTS:-10} # seconds; slices that one run may use up
dry="" pretend="" job_id=""
at_interrupt="stopped; the same command goes on"

say() { echo "tpu.sh: $*" >&2; }
progress() { [ "$dry" ] || say "$*"; }
refuse() { say "$*" && exit 2; }
fail() { say "$*" && exit 1; }
pause() { [ "$dry" ] || sleep "$INTERVAL"; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/slice.sh

# Refusals: before any call that changes something.

check_all() {
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    refuse "NAME=$NAME must be small letters, digits and -, a letter first"
  [[ $INTERVAL =~ ^[0-9]+$ ]] || refuse "INTERVAL=$INTERVAL must be whole seconds"
  [[ $ATTEMPTS =~ ^[1-9][0-9]*$ ]] || refuse "ATTEMPTS=$ATTEMPTS must be at least 1"
  [[ $WORKER =~ ^[0-9]+$ ]] || refuse "WORKER=$WORKER must be a worker's number, 0 or more"
  [[ $SPOT =~ ^[01]$ ]] || refuse "SPOT=$SPOT must be 1 (cheaper, may be taken away) or 0"
  if [ -z "$dry" ] && ! command -v gcloud >/dev/null; then
    refuse "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
  fi
}

# PROJECT and ZONE: gcloud's own, where they are not given.
place() { # VARIABLE PROPERTY EXAMPLE
  local value
  [ -z "${!1}" ] || return 0
  if [ "$dry" ]; then
    echo "$1=\$(gcloud config get-value $2)"
    value=\$$1
  else
    value=$(gcloud config get-value "$2" 2>/dev/null) || value=""
    [ "$value" != "(unset)" ] || value=""
    [ "$value" ] ||
      refuse "$1 is not set and gcloud has none; set $1=$3, or run: gcloud config set $2 $3"
  fi
  printf -v "$1" %s "$value"
}

# What it is and, for a slice of several hosts, where its results can go.
check_tpu() {
  local runtime
  [ "$TPU" ] || refuse "TPU is not set; set it to an accelerator type, like TPU=v5litepod-16"
  [[ $TPU =~ ^[a-z0-9]+-[1-9][0-9]*$ ]] ||
    refuse "TPU=$TPU is not an accelerator type; give one like v5litepod-16, v6e-8 or v4-32"
  case $TPU in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5e-*) refuse "TPU=$TPU: the accelerator type of a v5e is v5litepod-${TPU#*-}" ;;
    *)
      [ "$RUNTIME" ] || refuse "TPU=$TPU: no runtime version is known for it; set RUNTIME"
      runtime=$RUNTIME
      ;;
  esac
  : "${RUNTIME:=$runtime}"
}

check_run() {
  local word config=""
  [[ ${1:--} != -* ]] || refuse "run needs a job: run JOB --config=FILE.py[:preset] [...]"
  grep -q "^    \"$1\": (" autodistill_jax/jobs/__init__.py ||
    refuse "run: no job $1; see python -m autodistill_jax --help"
  for word in "$@"; do
    case $word in
      --config=*) config=${word#*=} ;;
      --workdir | --workdir=*) refuse "give the workdir as WORKDIR=gs://..., not $word" ;;
    esac
  done
  [ "$config" ] || refuse "run needs --config=FILE.py[:preset]"
  [ -e "${config%%:*}" ] ||
    refuse "--config=$config: no such file here; it must be committed, like configs/minilm.py"
  [ "$WORKDIR" ] || refuse "WORKDIR is not set; set it to a folder of a bucket, gs://BUCKET/x"
  if [[ $WORKDIR != gs://?* ]]; then
    # From 8 chips (v5e, v6e) or 8 cores (all others) up, a slice has several hosts.
    [ "${TPU#*-}" -le 8 ] ||
      refuse "WORKDIR=$WORKDIR: $TPU has several hosts, which share a bucket; give gs://BUCKET/x"
    [[ $WORKDIR == /* ]] ||
      refuse "WORKDIR=$WORKDIR must be gs://BUCKET/x, or an absolute path on the worker"
    say "warning: WORKDIR=$WORKDIR is on the worker's disk, which is lost with it"
  fi
}

create() {
  look_or_fail
  case $state in
    GONE) request ;;
    *) progress "$NAME is there already, as it was asked for then" ;;
  esac
  await || fail "$NAME is $state ($(why)); run delete, then create"
}

setup() {
  look_or_fail
  [ "$state" = READY ] || refuse "$NAME is $state; run create first"
  reach || fail "$NAME is $state; run create again"
  ! has running || refuse "a job runs on $NAME, with the files it has; run delete to end it"
  install || fail "setup failed (see above); $NAME is there and costs: run setup again," \
    "or delete"
  progress "$NAME is set up"
}

# One life of the slice: 0 when the job has ended well, 1 when the slice is not READY any
# more or a worker was started anew.
pass() {
  look_or_fail
  if is_lost; then
    if [ "$state" != GONE ]; then
      say "$NAME is $state ($(why)); deleting it and asking for another"
      remove
    fi
    request
  fi
  await && reach || return 1
  if has running; then
    ! grep '^worker [^ ]* running ' <<<"$told" | grep -vq " running $job_id " ||
      refuse "another job runs on $NAME (see logs); wait for it, or run delete"
    progress "the job runs on $NAME already; watching it"
  else
    if has bare || [ "$dry" ]; then
      install || lost_or_fail "setup failed (see above)" || return 1
    fi
    progress "starting on every worker of $NAME"
    ssh_worker all "$(quote "$worker" start "$job_id" "$@")" >/dev/null ||
      lost_or_fail "the job could not be started (see above)" || return 1
  fi
  at_interrupt="the job goes on; the same command watches it, logs follows it, delete ends it"
  watch
}
lost_or_fail() {
  ! still_ready || fail "$*; $NAME is there and costs: the same command goes on, delete ends it"
  return 1
}

watch() {
  local code line before=""
  note "again and again, until every worker says exit-0:"
  while reach; do
    [ -z "$dry" ] || return 0
    if has 'exit-[1-9][0-9]*|died|idle|bare'; then
      if ! has exit-2; then
        still_ready || return 1
        poll || true # The others may have ended too, and know why.
      fi
      if has exit-2; then
        ssh_worker all "$worker stop" >/dev/null 2>&1 || true
        say "the job cannot run so: $(sed -n 's/^worker [^ ]* exit-2 [^ ]* //p' <<<"$told" |
          head -n 1)"
        exit 2
      fi
      if has 'exit-[1-9][0-9]*'; then
        ssh_worker all "$worker failed; $worker stop" 2>/dev/null || true
        code=$(sed -nE 's/^worker [^ ]+ exit-([1-9][0-9]*) .*/\1/p' <<<"$told" | sort -n |
          head -n 1)
        say "the job failed with status $code (see above); $NAME is there and costs:" \
          "the same command goes on, delete ends it"
        exit "$code"
      fi
      say "a worker has lost the job without a word (a reboot?); starting it anew"
      ssh_worker all "$worker stop" >/dev/null 2>&1 || true
      return 1
    fi
    has running || return 0
    line=$(sort <<<"$told" | cut -d ' ' -f 2,5- | head -n 1)
    [ "$line" = "$before" ] || progress "$(date +%T) $line"
    before=$line
    pause
  done
  return 1
}

run() {
  local lives=1
  set -- "$@" "--workdir=$WORKDIR"
  job_id=$(printf '%s\n' "$@" | cksum | tr ' ' -)
  until pass "$@"; do
    lives=$((lives + 1))
    [ "$lives" -le "$ATTEMPTS" ] ||
      fail "$NAME was lost $ATTEMPTS times (ATTEMPTS); it is $state now, see status"
    say "$NAME is $state; going on in $WORKDIR, attempt $lives of $ATTEMPTS"
    at_interrupt="stopped; the same command goes on"
    pause
  done
  progress "done, in $WORKDIR; $NAME is there and costs until you run delete"
}

status() {
  look_or_fail
  if [ "$dry" ]; then
    poll
  elif [ "$state" = GONE ]; then
    echo "$NAME: no such queued resource in $ZONE of $PROJECT; nothing costs"
  elif is_lost; then
    echo "$NAME is $state ($(why)); delete it"
  elif [ "$state" != READY ]; then
    echo "$NAME is $state"
  else
    echo "$NAME is READY, and costs"
    poll || fail "cannot reach its workers over ssh ($(tail -n 1 <<<"$said"))"
    sort <<<"$told"
  fi
}

logs() {
  trap - INT
  ssh_worker "$WORKER" "$worker logs" || fail "no log from worker $WORKER of $NAME (see above)"
}

delete() {
  look_or_fail
  if [ "$state" = GONE ] && [ -z "$dry" ]; then
    say "$NAME: no such queued resource in $ZONE of $PROJECT; nothing to delete"
  else
    remove
    progress "$NAME is deleted; what is in buckets stays, and costs"
  fi
}

if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
command=${1:-}
[ $# = 0 ] || shift
if [ "${1:-}" = --dry-run ]; then # Behind the command it means the same.
  dry=yes
  shift
fi
trap 'say "$at_interrupt"; exit 130' INT TERM HUP
case $command in
  create | setup | logs | status | delete)
    [ $# = 0 ] || refuse "$command takes no arguments ($1); variables come before it"
    ;;
  run) ;;
  *) refuse "usage: NAME=... ZONE=... PROJECT=... TPU=... ./launch/tpu.sh [--dry-run]" \
    "create|setup|run JOB --config=FILE.py|logs|status|delete" ;;
esac
check_all
case $command in create | run) check_tpu ;; esac
[ "$command" != run ] || check_run "$@"
place PROJECT project my-project
place ZONE compute/zone us-west4-a
if [ "$dry" ]; then
  exec 3>&1
  case $command in # What it takes for seen.
    delete) pretend="READY GONE" ;;
    create | run) pretend="GONE READY" ;;
    *) pretend=READY ;;
  esac
fi
"$command" "$@"
