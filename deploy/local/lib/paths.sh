# Where things are: nothing is written into the clone.
# shellcheck shell=bash
# shellcheck disable=SC2034 # read by the files that source this one

readonly CACHE=${PENSTOCK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/penstock}
readonly STATES=${PENSTOCK_STATE:-/var/lib/penstock-local}

LOCAL_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPOSITORY=$(cd "$LOCAL_DIR/../.." && pwd)
readonly LOCAL_DIR REPOSITORY
# shellcheck source=deploy/environment.sh
source "$REPOSITORY/deploy/environment.sh"

# Sets the variables of one cluster. Everything that belongs to it carries its name.
select_cluster() {
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$ ]] ||
    refuse "'$1' is not a cluster name: use 1 to 20 of a-z, 0-9 and '-', starting with a letter"
  NAME=$1
  STATE=$STATES/$NAME
  KUBECONFIG_FILE=$STATE/kubeconfig
  CGROUP=penstock-$NAME # the same name in every cgroup hierarchy
}

# The first 16 hex digits of the SHA-256 of standard input: the key of a cached artefact.
key_of_input() {
  sha256sum | cut -c1-16
}

# Puts one build at a time on the cache; the lock goes with the (sub)shell that took it.
lock_cache() {
  mkdir -p "$CACHE"
  exec 8>"$CACHE/lock"
  flock --nonblock 8 || { say "waiting for another build to finish" && flock 8; }
}
