#!/usr/bin/env bash
# A run on hosts of 8 GPUs under Slurm, one process per host.
#
#   slurm.sh --nodes=2 --time=24:00:00 [--partition=NAME] [--account=NAME] [--gpus=8] -- STAGE --workdir=DIR ...
#
# Submits itself with sbatch, from the folder of this checkout, which all hosts must see with its .venv. Five minutes
# before the time is over, and when it is preempted, the run saves and ends with 143, and the job is queued again.
# --dry_run prints the command that submits the job, and runs none.
set -euo pipefail

# Slurm runs a copy of this file, elsewhere.
# shellcheck source=launch/pod/common.sh
source "${MAIRA_POD:-$(dirname "${BASH_SOURCE[0]}")}/common.sh"

parse "nodes time partition account gpus" "" "$@"
need_stage
gpus=$(optional gpus 8)
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus=$gpus is not a number: give the GPUs of a host"

if [[ -z ${MAIRA_POD:-} ]]; then
  nodes=$(required nodes "the number of hosts")
  time=$(required time "how long the job may run, such as 24:00:00")
  flags=()
  for flag in partition account; do
    if given "$flag"; then
      flags+=("--$flag=$(required "$flag" "")")
    fi
  done
  # TERM goes to the processes, not to this script, which is to queue the job again.
  call sbatch --job-name="maira-${STAGE[0]}" --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus" --exclusive \
    --time="$time" --requeue --signal=TERM@300 --open-mode=append --output=slurm-%j.log --chdir="$HERE" \
    ${flags[@]+"${flags[@]}"} --export="ALL,MAIRA_POD=$HERE/launch/pod" "${BASH_SOURCE[0]}" "$@"
  exit
fi

# What follows runs on the first host of the job. Each process finds the others by Slurm's variables.
trap : TERM  # of a preemption, which srun passes on
export PATH="$HERE/.venv/bin:$PATH"
code=0
# A process reads on all processors of its host; once one has ended, the others have the time that a checkpoint takes.
srun --label --cpu-bind=none --kill-on-bad-exit=0 --wait=300 "${COMMAND[@]}" || code=$?
if ((code == 143)); then
  scontrol requeue "${SLURM_JOB_ID:?}"
fi
exit "$code"
