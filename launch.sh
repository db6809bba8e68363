#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU VM, or here. See: ./launch.sh help
set -euo pipefail

PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-west4-a}
TPU_NAME=${TPU_NAME:-minarch-jax}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-8}
RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
PREEMPTIBLE=${PREEMPTIBLE:-0}
WORKER=${WORKER:-all}
REMOTE_DIR=${REMOTE_DIR:-minarch_jax}
REMOTE_PYTHON=${REMOTE_PYTHON:-3.12}
PULL_TO=${PULL_TO:-.}
PYTHON=${PYTHON:-python}
DRY_RUN=${DRY_RUN:-0}

help() {
  cat <<EOF2
usage: ./launch.sh VERB [ARGUMENTS]

  create [FLAGS]          make the TPU VM; FLAGS go to gcloud as they are
  push                    copy this checkout there (without .git and results)
                          and install it with jax[tpu]
  run [MODULE] [FLAGS]    start python -m MODULE FLAGS there, detached: it goes
                          on when the connection is lost; MODULE is
                          experiments.study unless given; on several hosts
                          every host runs it
  status                  state of the VM, of the run, and the end of its log
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
  RUNTIME_VERSION   image of the VM ($RUNTIME_VERSION)
  PREEMPTIBLE       1: a spot VM, cheaper, may be taken away ($PREEMPTIBLE)
  WORKER            host that push, run and status address ($WORKER)
  REMOTE_DIR        directory below the home directory there ($REMOTE_DIR)
  REMOTE_PYTHON     Python version installed there ($REMOTE_PYTHON)
  PULL_TO           directory here that receives results/ ($PULL_TO)
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

tpu() {  # tpu VERB ARGUMENTS...: one gcloud call on our TPU
  local verb=$1
  shift
  set -- "$@" --zone="$ZONE"
  [ -z "$PROJECT" ] || set -- "$@" --project="$PROJECT"
  do_ gcloud compute tpus tpu-vm "$verb" "$@"
}

remote() {  # remote SCRIPT: run it by the shell of the chosen hosts
  tpu ssh "$TPU_NAME" --worker="$WORKER" --command="$1"
}

create() {
  [ "$PREEMPTIBLE" != 1 ] || set -- --spot "$@"
  tpu create "$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
    --version="$RUNTIME_VERSION" "$@"
}

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

pull() {
  do_ mkdir -p "$PULL_TO"
  tpu scp --recurse "$TPU_NAME:$REMOTE_DIR/results" "$PULL_TO" --worker=0
}

delete() {
  tpu delete "$TPU_NAME"
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
  create | run) "$verb" "$@" ;;
  push | status | pull | delete | help)
    if [ $# -gt 0 ]; then
      echo "launch.sh: $verb takes no arguments, got: $*" >&2
      exit 2
    fi
    "$verb"
    ;;
  local) local_ "$@" ;;
  *)
    echo "launch.sh: no verb '$verb'; one of: create push run status pull" \
      "delete local help" >&2
    exit 2
    ;;
esac
