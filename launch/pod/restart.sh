#!/usr/bin/env bash
# Runs a command, and again while it ends with 143: it was preempted, or another process of its run was lost, and it
# resumes. Any other exit code is the last.
#
#   restart.sh COMMAND...
set -euo pipefail

(($#)) || { echo "error: no command is given: restart.sh COMMAND..." >&2; exit 2; }
for ((start = 1; start <= 50; start++)); do
  code=0
  "$@" || code=$?
  echo "start $start ended with exit code $code" >&2
  ((code == 143)) || break
done
exit "$code"
