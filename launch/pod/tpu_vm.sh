#!/usr/bin/env bash
# A run on a slice of Cloud TPU, through gcloud.
#
#   tpu_vm.sh create  --name=NAME --zone=ZONE --accelerator=v5litepod-16 [--spot] [--runtime=VERSION]
#   tpu_vm.sh install --name=NAME --zone=ZONE
#   tpu_vm.sh run     --name=NAME --zone=ZONE -- STAGE --workdir=DIR ...
#   tpu_vm.sh logs    --name=NAME --zone=ZONE [--logs=DIR]
#   tpu_vm.sh stop    --name=NAME --zone=ZONE
#
# create waits for the slice; install copies the committed files of this checkout to every host; run starts the stage on
# all of them and returns; logs writes one file per host; stop gives the slice back, which ends its cost. --project=ID
# is gcloud's own default where it is left out. --dry_run prints the commands and runs none.
set -euo pipefail
# shellcheck source=launch/pod/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-}
[[ $action =~ ^(create|install|run|logs|stop)$ ]] || fail "'$action' is not an action: give create, install, run, logs or stop"
shift
parse "name zone project accelerator runtime logs" "spot" "$@"
name=$(required name "the name of the slice")
zone=$(required zone "the zone of the slice, such as us-west4-a")
place=(--zone="$zone")
if given project; then
  place+=(--project="$(required project "")")
fi

# Google's table of runtimes: https://cloud.google.com/tpu/docs/runtimes
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--accelerator=$1 has no runtime known here: give --runtime=VERSION from https://cloud.google.com/tpu/docs/runtimes" ;;
  esac
}

on_all_hosts() {
  call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "$@"
}

create() {
  local accelerator runtime flags=()
  accelerator=$(required accelerator "the type of the slice, such as v5litepod-16")
  runtime=$(optional runtime "")
  [[ -n $runtime ]] || runtime=$(runtime_of "$accelerator")
  if given spot; then
    flags=(--spot)
  fi
  call gcloud compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" ${flags[@]+"${flags[@]}"}
  wait_until_active
}

wait_until_active() {
  local state describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" "--format=value(state.state)")
  if given dry_run; then
    call "${describe[@]}"
    return
  fi
  until state=$("${describe[@]}") && [[ $state == ACTIVE ]]; do
    if [[ $state == FAILED || $state == SUSPENDED ]]; then
      echo "error: the slice is $state: run '$0 stop' and create it again, in another zone or without --spot" >&2
      exit 1
    fi
    echo "$state"
    sleep 30
  done
}

# The hosts' own Python is older than 3.11, so uv brings one.
install() {
  local folder=. uv=.local/bin/uv
  if ! given dry_run; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
  fi
  call git -C "$HERE" archive --format=tar.gz --output="$folder/maira.tar.gz" HEAD
  call gcloud compute tpus tpu-vm scp "$folder/maira.tar.gz" "$name:" "${place[@]}" --worker=all
  on_all_hosts --command="set -e; test -x $uv || curl -LsSf https://astral.sh/uv/install.sh | sh; \
rm -rf maira; mkdir maira; tar -xzf maira.tar.gz -C maira; cd maira; \
../$uv venv --python 3.12 .venv; ../$uv pip install '.[tpu]'"
}

run() {
  need_stage
  local words
  words=$(printf '%q ' "${COMMAND[@]}")
  # The second is for nohup to begin, before the connection ends.
  on_all_hosts --command="cd maira; PATH=\$PWD/.venv/bin:\$PATH nohup launch/pod/restart.sh $words> run.log 2>&1 < /dev/null & sleep 1"
}

logs() {
  local folder
  folder=$(optional logs "logs/$name")
  call mkdir -p "$folder"
  on_all_hosts --output-directory="$folder" --command="cat maira/run.log"
}

stop() {
  call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --async
}

"$action"
