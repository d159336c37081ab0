# How is a TPU slice asked for, looked at, reached and given back? Sourced by tpu.sh.
# Every call of gcloud is here. What one thing is called twice: the queued resource and
# the slice that it brings have the same name.
# shellcheck shell=bash disable=SC2153,SC2154 # The variables are tpu.sh's.

archive=${TMPDIR:-/tmp}/autodistill_jax-$NAME.tar.gz
worker=autodistill_jax/launch/worker.sh
state="" said="" told=""

# Words that a shell reads back as they are.
quote() {
  local word out="" mark="'" escaped="'\\''"
  for word in "$@"; do
    # shellcheck disable=SC2016 # Only a dry run has these two, and sets them before.
    case $word in
      '--project=$PROJECT' | '--zone=$ZONE') word="\"$word\"" ;;
      "" | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$mark/$escaped}'" ;;
    esac
    out+="${out:+ }$word"
  done
  printf '%s\n' "$out"
}

note() { [ -z "$dry" ] || echo "# $*" >&3; }
act() {
  if [ "$dry" ]; then quote "$@" >&3; else "$@"; fi
}
tpus() { act gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE" --quiet; }

# A connection to a worker that is gone must end, not hang.
ssh_worker() { # WHICH COMMAND
  # shellcheck disable=SC2086 # Several flags.
  tpus tpu-vm ssh "$NAME" "--worker=$1" "--ssh-flag=-o ServerAliveInterval=15" \
    $SSH_FLAGS "--command=$2"
}

# Prints one field of one thing, or GONE; where that cannot be told, why, and fails.
ask() { # queued-resources|tpu-vm FIELD
  local heard
  if heard=$(tpus "$1" describe "$NAME" "--format=value($2)" 2>&1); then
    grep -xE '[A-Z_]+' <<<"$heard" | tail -n 1 || true
  elif grep -q NOT_FOUND <<<"$heard"; then
    echo GONE
  else
    grep -m 1 ERROR <<<"$heard" || tail -n 1 <<<"$heard"
    return 1
  fi
}

# Into $state: GONE, the queued resource's state until it is ACTIVE, then the slice's.
look() {
  local now=${pretend%% *} # A dry run takes these for seen.
  pretend=${pretend#* }
  state=$(ask queued-resources state.state) || return
  if [ "$state" = ACTIVE ] || [ "$now" = READY ]; then
    state=$(ask tpu-vm state) || return
    [ "$state" != GONE ] || state=TERMINATED # Of this there still is a request.
  fi
  state=${now:-${state:-UNKNOWN}}
}
look_or_fail() { look || fail "cannot ask about $NAME in $ZONE: $state"; }

is_lost() {
  case $state in
    GONE | FAILED | SUSPENDING | SUSPENDED | DELETING | PREEMPTED | TERMINATED | \
      STOPPING | STOPPED | HIDING | HIDDEN) return 0 ;;
  esac
  return 1
}

why() {
  local fields="state.failedData.error.message,state.stateInitiator" heard
  heard=$(tpus queued-resources describe "$NAME" "--format=value[separator=' ']($fields)" \
    2>/dev/null | tail -n 1 | sed 's/^ *//; s/ *$//') || true
  echo "${heard:-gcloud gives no reason}"
}

request() {
  local flags="--accelerator-type=$TPU --runtime-version=$RUNTIME"
  [ "$SPOT" = 0 ] || flags+=" --spot"
  [ -z "$NETWORK" ] || flags+=" --network=$NETWORK"
  [ -z "$SUBNETWORK" ] || flags+=" --subnetwork=$SUBNETWORK"
  [ -z "$SERVICE_ACCOUNT" ] || flags+=" --service-account=$SERVICE_ACCOUNT"
  # shellcheck disable=SC2086 # Several flags.
  tpus queued-resources create "$NAME" "--node-id=$NAME" $flags $CREATE_FLAGS ||
    fail "gcloud did not create $NAME (see above; quota, zone or accelerator type?);" \
      "status says whether it is there and costs"
}

# Until the slice is READY; 1: it is lost.
await() {
  local before="" misses=0 looks=0
  note "again and again, until they say ACTIVE and READY:"
  while true; do
    if look; then
      misses=0 looks=$((looks + 1))
      if [ "$state" != "$before" ] || [ $((looks % 20)) = 0 ]; then
        progress "$(date +%T) $NAME is $state"
      fi
      before=$state
      [ "$state" != READY ] || return 0
      ! is_lost || return 1
    else
      misses=$((misses + 1))
      [ "$misses" -lt 5 ] || fail "cannot ask about $NAME in $ZONE: $state; it may be" \
        "there and cost: the same command goes on, delete ends it"
    fi
    pause
  done
}

remove() {
  local tries=0
  # What is just being suspended cannot be deleted yet.
  until tpus queued-resources delete "$NAME" --force; do
    tries=$((tries + 1))
    [ "$tries" -lt 5 ] || fail "gcloud did not delete $NAME (see above); it may be" \
      "there and cost: run delete again"
    pause
  done
  tries=0
  until look && [ "$state" = GONE ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || fail "$NAME is still there ($state) and may cost; see status"
    pause
  done
}

# Into $told: a line of every worker, see worker.sh. Fails where not all can be reached.
poll() {
  local command="if [ -e $worker ]; then $worker poll; else echo worker \$(hostname) bare -; fi"
  said=$(ssh_worker all "$command" 2>&1) || return
  told=$(grep '^worker ' <<<"$said") || [ "$dry" ]
}
# 1: the slice is not READY.
reach() {
  local tries=0
  until poll; do
    if look && [ "$state" != READY ]; then return 1; fi
    tries=$((tries + 1))
    [ "$tries" -lt 5 ] || fail "cannot reach the workers of $NAME over ssh" \
      "($(tail -n 1 <<<"$said")); a job there goes on: the same command watches it"
    pause
  done
}
has() { grep -Eq "^worker [^ ]+ ($1) " <<<"$told"; }

# A slice may be told to be READY for a while after its processes were ended.
still_ready() {
  local i
  for i in 1 2 3; do
    if look && [ "$state" != READY ]; then return 1; fi
    [ "$i" = 3 ] || pause
  done
}

install() {
  local data=""
  [ "$dry" ] || [ -z "$(git status --porcelain)" ] ||
    say "warning: what is not committed is not copied to the workers"
  progress "copying to every worker of $NAME and installing there; some minutes ..."
  act git archive --format=tar.gz "--output=$archive" HEAD ||
    fail "git archive failed; this must be a git clone of the project"
  # shellcheck disable=SC2086 # Several addresses; several flags.
  [ -z "$DATA" ] || data=" $(quote $DATA)"
  # shellcheck disable=SC2086
  tpus tpu-vm scp "$archive" "$NAME:autodistill_jax.tar.gz" --worker=all $SSH_FLAGS &&
    ssh_worker all "mkdir -p autodistill_jax && cd autodistill_jax && \
rm -rf autodistill_jax configs launch && tar -xzf ../autodistill_jax.tar.gz && \
launch/worker.sh setup$data"
}
