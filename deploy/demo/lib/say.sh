# What the demo tells: steps, lines with a clock, and one sentence on failure. ASCII; colour on a terminal.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the colours are used by the other parts

BOLD='' GREEN='' RED='' YELLOW='' DIM='' PLAIN=''
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' YELLOW=$'\e[33m' DIM=$'\e[2m' PLAIN=$'\e[0m'
fi
readonly BOLD GREEN RED YELLOW DIM PLAIN
readonly BEGAN=$SECONDS
STEP=0

step() {
  STEP=$((STEP + 1))
  printf '\n%s%d. %s%s\n' "$BOLD" "$STEP" "$*" "$PLAIN"
}

say() {
  printf '%s[%4ds]%s %s\n' "$DIM" "$((SECONDS - BEGAN))" "$PLAIN" "$*"
}

# Ends the demo. Say what was tried, what went wrong and what to do.
die() {
  printf '\n%sThe demo stopped:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 1
}

# shown COMMAND...: runs it with its output indented.
shown() {
  "$@" 2>&1 | sed -u 's/^/        /'
}

# logged NAME COMMAND...: runs it in silence; on failure its last lines are shown.
logged() {
  local log=$LOGS/$1.log
  "${@:2}" >"$log" 2>&1 && return
  tail -n 15 "$log" | sed 's/^/        /' >&2
  return 1
}

# within SECONDS COMMAND...: polls COMMAND in silence; fails when the time is over.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.5
  done
}

# 1234567 -> 1,234,567
thousands() {
  sed -E ':again; s/^([0-9]+)([0-9]{3})/\1,\2/; t again' <<<"$1"
}
