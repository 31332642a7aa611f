#!/usr/bin/env bash
# A run on a GKE cluster that XPK made.
#
#   xpk.sh --cluster=CLUSTER --name=NAME --zone=ZONE --tpu=v5litepod-16 --image=IMAGE -- STAGE --workdir=DIR ...
#
# IMAGE is that of the Dockerfile in this folder, in a registry that the cluster reads. --project=ID is gcloud's own
# default where it is left out. --dry_run prints the command and runs none.
set -euo pipefail
# shellcheck source=launch/pod/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "cluster name zone project tpu image" "" "$@"
cluster=$(required cluster "the name of the cluster")
name=$(required name "the name of the workload")
zone=$(required zone "the zone of the cluster")
tpu=$(required tpu "the type of the slice, such as v5litepod-16")
image=$(required image "the image of the Dockerfile in this folder")
# XPK makes longer names out of it, which Kubernetes refuses.
((${#name} <= 28)) || fail "--name=$name has ${#name} letters: give at most 28"
need_stage
place=(--zone="$zone")
if given project; then
  place+=(--project="$(required project "")")
fi

# XPK restarts after 42 and 127 to 255 by itself; 143 is named all the same, since the run depends on it.
call xpk workload create --cluster="$cluster" --workload="$name" "${place[@]}" --tpu-type="$tpu" --num-slices=1 \
  --docker-image="$image" --max-restarts=50 --restart-on-exit-codes=143 --termination-grace-period-seconds=300 \
  --command="$(printf '%q ' "${COMMAND[@]}")"
