# What the cluster scripts tell a person: plain lines with a clock, and one sentence on failure.
# shellcheck shell=bash

readonly STARTED_AT=$SECONDS

say() {
  printf '%3ds  %s\n' "$((SECONDS - STARTED_AT))" "$*" >&2
}

# Ends the script. Say what was tried, what is missing and what to do.
die() {
  printf 'cluster: %s\n' "$*" >&2
  exit 1
}

# A wrong command line, as opposed to something that failed.
refuse() {
  printf 'cluster: %s (see "cluster help")\n' "$*" >&2
  exit 2
}

# wait_until SECONDS COMMAND...: polls COMMAND in silence; fails when the time is over.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}
