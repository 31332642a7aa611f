# shellcheck shell=bash
# What the scripts of this folder share: flags, --dry_run, and the command that each process of a run executes.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Bad flags have exit code 2, as those of the commands themselves.
fail() {
  echo "error: $1" >&2
  exit 2
}

# parse "VALUED..." "SWITCHES..." "$@" keeps --name=VALUE and --switch for the functions below. The words after -- are
# a stage and its flags.
parse() {
  local valued=$1 switches="dry_run${2:+ $2}" flag
  shift 2
  STAGE=()
  while (($#)); do
    flag=${1#--}
    if [[ $1 == -- ]]; then
      shift
      STAGE=("$@")
      break
    elif [[ $1 == --*=* && " $valued " == *" ${flag%%=*} "* ]]; then
      printf -v "flag_${flag%%=*}" %s "${flag#*=}"
    elif [[ $1 == --* && " $switches " == *" $flag "* ]]; then
      printf -v "flag_$flag" %s yes
    else
      fail "$1 is not a flag: give --${valued// /=..., --}=... or --${switches// / --}; a stage stands after --"
    fi
    shift
  done
}

# given FLAG tells whether it was.
given() {
  local variable="flag_$1"
  [[ -n ${!variable:-} ]]
}

# optional FLAG DEFAULT prints the flag's value.
optional() {
  local variable="flag_$1"
  printf %s "${!variable:-$2}"
}

# required FLAG MEANING prints the flag's value.
required() {
  given "$1" || fail "--$1=... is missing: give $2"
  optional "$1" ""
}

# Makes COMMAND, that of each process, out of the stage's words.
need_stage() {
  ((${#STAGE[@]})) || fail "no stage is given: end with -- STAGE --workdir=DIR ..., such as -- train --workdir=/shared/run"
  local stage=${STAGE[0]}
  [[ $stage =~ ^[a-z]+$ && -f $HERE/launch/$stage.py ]] || fail "$stage is not a stage: give one of the commands of launch"
  [[ " ${STAGE[*]} " == *" --workdir="* ]] || fail "--workdir=DIR is missing after -- $stage: give a folder that all hosts see"
  # shellcheck disable=SC2034  # for the scripts that source this file
  COMMAND=(python -m "launch.$stage" --distributed=on "${STAGE[@]:1}")
}

# call COMMAND... runs it; with --dry_run it is printed.
call() {
  if given dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
