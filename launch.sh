#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU VM, or here. See: ./launch.sh help
set -euo pipefail

PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-west4-a}
TPU_NAME=${TPU_NAME:-minarch-jax}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-8}
RUNTIME_VERSION=${RUNTIME_VERSION:-}
PREEMPTIBLE=${PREEMPTIBLE:-0}
QUEUED=${QUEUED:-0}
WORKER=${WORKER:-all}
REMOTE_DIR=${REMOTE_DIR:-minarch_jax}
REMOTE_PYTHON=${REMOTE_PYTHON:-3.12}
PULL_TO=${PULL_TO:-.}
WATCH_SECONDS=${WATCH_SECONDS:-60}
PYTHON=${PYTHON:-python}
DRY_RUN=${DRY_RUN:-0}

# The image that a generation of TPUs wants, unless RUNTIME_VERSION says.
if [ -z "$RUNTIME_VERSION" ]; then
  case $ACCELERATOR_TYPE in
    v2-* | v3-* | v4-*) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
    *)
      echo "launch.sh: which image ACCELERATOR_TYPE=$ACCELERATOR_TYPE wants is" \
        "not known; known are v2-, v3-, v4-, v5litepod-, v5p- and v6e-; or set" \
        "RUNTIME_VERSION" >&2
      exit 2
      ;;
  esac
fi

help() {
  cat <<EOF2
usage: ./launch.sh VERB [ARGUMENTS]

  create [FLAGS]          make the TPU VM, or with QUEUED=1 ask for it and wait
                          until it is there; FLAGS go to gcloud as they are
  push                    copy this checkout there (without .git and results)
                          and install it with jax[tpu]
  setup [FLAGS]           create and push
  run [MODULE] [FLAGS]    start python -m MODULE FLAGS there, detached: it goes
                          on when the connection is lost; MODULE is
                          experiments.study unless given; on several hosts
                          every host runs it: say --distributed, and an --out
                          that all of them see
  status                  state of the VM, of the run, and the end of its log
  logs                    the log of the run as it grows; Ctrl-C ends only this
  watch [MODULE] [FLAGS]  keep it running until it ends well: when the VM is
                          taken away make it anew, push, bring back what was
                          pulled, run on; pulls results every WATCH_SECONDS
  pull                    copy results/ from worker 0 to PULL_TO
  delete                  delete the TPU VM (gcloud asks first)
  local [MODULE] [FLAGS]  the same as run, on this machine, in the foreground

  Results are kept beside the code there, so push never touches them. Start in
  results/ to have them pulled:
    ./launch.sh run experiments.study --dataset=digits --out=results/digits

Set in the environment (present value):
  PROJECT           Google Cloud project; empty: gcloud's own ($PROJECT)
  ZONE              zone of the TPU ($ZONE)
  TPU_NAME          name of the TPU VM ($TPU_NAME)
  ACCELERATOR_TYPE  kind and size ($ACCELERATOR_TYPE)
  RUNTIME_VERSION   image of the VM; empty: the generation's ($RUNTIME_VERSION)
  PREEMPTIBLE       1: a spot VM, cheaper, may be taken away ($PREEMPTIBLE)
  QUEUED            1: as a queued resource, given when it is free ($QUEUED)
  WORKER            host that push, run and status address ($WORKER)
  REMOTE_DIR        directory below the home directory there ($REMOTE_DIR)
  REMOTE_PYTHON     Python version installed there ($REMOTE_PYTHON)
  PULL_TO           directory here that receives results/ ($PULL_TO)
  WATCH_SECONDS     between looks of watch, and of create if QUEUED ($WATCH_SECONDS)
  PYTHON            interpreter of local ($PYTHON)
  DRY_RUN           1: print the commands instead of running them ($DRY_RUN)
EOF2
}

quoted() {  # quoted WORD...: the words as a shell reads them back
  local text
  printf -v text ' %q' "$@"
  printf '%s' "${text:1}"
}

do_() {  # do_ COMMAND...: run it, or print it
  if [ "$DRY_RUN" = 1 ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

cloud() {  # cloud KIND VERB ARGUMENTS...: one gcloud call
  local kind=$1 verb=$2
  shift 2
  set -- "$@" --zone="$ZONE"
  [ -z "$PROJECT" ] || set -- "$@" --project="$PROJECT"
  do_ gcloud compute tpus "$kind" "$verb" "$@"
}

tpu() {  # tpu VERB ARGUMENTS...: on our TPU
  cloud tpu-vm "$@"
}

remote() {  # remote SCRIPT: run it by the shell of the chosen hosts
  tpu ssh "$TPU_NAME" --worker="$WORKER" --command="$1"
}

create() {
  [ "$PREEMPTIBLE" != 1 ] || set -- --spot "$@"
  if [ "$QUEUED" = 1 ]; then
    cloud queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
      --accelerator-type="$ACCELERATOR_TYPE" \
      --runtime-version="$RUNTIME_VERSION" "$@"
    [ "$DRY_RUN" = 1 ] || until_given
  else
    tpu create "$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
      --version="$RUNTIME_VERSION" "$@"
  fi
}

until_given() {  # waits until a queued resource is there
  local state
  while :; do
    state=$(cloud queued-resources describe "$TPU_NAME" \
      --format='value(state.state)')
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "launch.sh: the queued resource is $state; see: ./launch.sh" \
          "delete" >&2
        return 1
        ;;
    esac
    sleep "$WATCH_SECONDS"
  done
}

setup() {
  create "$@"
  push
}

SELF="${BASH_SOURCE[0]}"

push() {
  local here archive=/tmp/minarch_jax.tar.gz dir
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  if [ "$DRY_RUN" != 1 ]; then
    archive=$(mktemp)
    # shellcheck disable=SC2064
    trap "rm -f $(quoted "$archive")" EXIT
  fi
  do_ tar -czf "$archive" -C "$here" --exclude=./.git --exclude=./results \
    --exclude=./.venv --exclude=./build --exclude='*.egg-info' \
    --exclude=__pycache__ --exclude='.*_cache' .
  tpu scp "$archive" "$TPU_NAME:minarch_jax.tar.gz" --worker="$WORKER"
  dir=$(quoted "$REMOTE_DIR")
  # The new tree replaces the old one whole, so deleted files are gone too.
  # uv brings the Python that the VM's image may lack.
  remote "set -e; mkdir -p $dir; cd $dir
rm -rf source.new; mkdir source.new
tar -xzf ~/minarch_jax.tar.gz -C source.new; rm ~/minarch_jax.tar.gz
rm -rf source; mv source.new source
python3 -m pip install -q --user uv || python3 -m pip install -q --user --break-system-packages uv
[ -e venv ] || ~/.local/bin/uv venv -q --python $(quoted "$REMOTE_PYTHON") venv
~/.local/bin/uv pip install -q --python venv/bin/python -e source 'jax[tpu]'"
}

with_module() {  # with_module ARGUMENTS...: sets `words` to python's arguments
  case ${1:-} in
    '' | -*) words=(-m experiments.study "$@") ;;
    *) words=(-m "$@") ;;
  esac
}

run() {
  local words command
  with_module "$@"
  command="PYTHONPATH=source venv/bin/python $(quoted "${words[@]}")"
  # Two shells read it: the host's, and the one that outlives the connection.
  remote "cd $(quoted "$REMOTE_DIR") || exit 1
if [ -e pid ] && kill -0 \"\$(cat pid)\" 2>/dev/null; then
echo 'a run is going on; see: ./launch.sh status' >&2; exit 1; fi
rm -f status
nohup bash -c $(quoted "$command; echo \$? >status") >log 2>&1 </dev/null &
echo \$! >pid; echo \"started on \$(hostname)\""
}

status() {
  tpu describe "$TPU_NAME" --format='value(state)'
  remote "cd $(quoted "$REMOTE_DIR") || exit 1
if [ ! -e pid ]; then echo \"\$(hostname): nothing was run\"
elif [ -e status ]; then echo \"\$(hostname): ended with \$(cat status)\"
elif kill -0 \"\$(cat pid)\" 2>/dev/null; then echo \"\$(hostname): running\"
else echo \"\$(hostname): was killed\"; fi
[ ! -e log ] || tail -n 20 log"
}

logs() {
  remote "tail -n 100 -F $(quoted "$REMOTE_DIR")/log"
}

pull() {
  do_ mkdir -p "$PULL_TO"
  tpu scp --recurse "$TPU_NAME:$REMOTE_DIR/results" "$PULL_TO" --worker=0
}

restore() {  # brings back what was pulled
  [ -d "$PULL_TO/results" ] || return 0
  tpu scp --recurse "$PULL_TO/results" "$TPU_NAME:$REMOTE_DIR" --worker=0
}

# What is left of it is deleted when a VM is made anew.
delete() {
  if [ "$QUEUED" = 1 ]; then
    cloud queued-resources delete "$TPU_NAME" --force "$@"
  else
    tpu delete "$TPU_NAME" "$@"
  fi
}

ended() {  # prints how the run of the first host ended, or that there is none
  WORKER=0 remote "cd $(quoted "$REMOTE_DIR") 2>/dev/null || { echo none; exit; }
if [ -e status ]; then cat status
elif [ ! -e pid ]; then echo none
elif kill -0 \"\$(cat pid)\" 2>/dev/null; then echo running
else echo killed; fi"
}

vm_state() {  # prints the state of the VM, GONE where there is none
  local answer
  if answer=$(tpu describe "$TPU_NAME" --format='value(state)' 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo GONE
  else  # the network, perhaps: not a reason to delete anything
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# Each step in a shell of its own, which ends at the first error.
anew() {
  "$SELF" setup && restore && "$SELF" run "$@"
}

watch() {
  if [ "$DRY_RUN" = 1 ]; then  # what is done when the VM is lost
    delete --quiet
    anew "$@"
    pull
    return
  fi
  while look "$@"; do sleep "$WATCH_SECONDS"; done
  [ "$code" = 0 ]
}

look() {  # does what is needed now; fails once the run has ended by itself
  local state
  state=$(vm_state)
  code=
  case $state in
    READY) code=$(ended) || return 0 ;;
    GONE | PREEMPTED | TERMINATED)
      echo "launch.sh: the VM is $state; making it anew" >&2
      # A queued resource outlives its VM.
      [ "$state$QUEUED" = GONE0 ] || delete --quiet || true
      anew "$@" || true  # or at the next look
      return 0
      ;;
    *) return 0 ;;
  esac
  case $code in
    none) "$SELF" push && "$SELF" run "$@" ;;
    running) ;;
    75 | killed)  # told to end, or its host was started anew
      echo "launch.sh: the run was stopped ($code); running on" >&2
      "$SELF" run "$@" || true
      ;;
    *)
      pull
      echo "launch.sh: the run ended with $code; the VM is still there" >&2
      return 1
      ;;
  esac
  pull >/dev/null 2>&1 || true  # there may be nothing yet
}

local_() {
  local words
  with_module "$@"
  do_ cd "$(dirname "${BASH_SOURCE[0]}")"
  do_ "$PYTHON" "${words[@]}"
}

verb=${1:-help}
[ $# -eq 0 ] || shift
case $verb in
  create | setup | run | watch) "$verb" "$@" ;;
  push | status | logs | pull | delete | help)
    if [ $# -gt 0 ]; then
      echo "launch.sh: $verb takes no arguments, got: $*" >&2
      exit 2
    fi
    "$verb"
    ;;
  local) local_ "$@" ;;
  *)
    echo "launch.sh: no verb '$verb'; one of: create push setup run status" \
      "logs watch pull delete local help" >&2
    exit 2
    ;;
esac
