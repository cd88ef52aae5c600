# Where things are built and how they are tagged, for every script and for the Makefile. Whatever is set
# before stays as it is.
# shellcheck shell=bash

REPOSITORY_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Outside the clone, so that a fresh one finds it warm.
export PENSTOCK_CACHE=${PENSTOCK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/penstock}
# One per clone: Cargo tells sources apart by their dates, and would take another clone's binaries for its own.
CLONE_TARGET_DIR=$PENSTOCK_CACHE/target/$(tr / + <<<"${REPOSITORY_ROOT#/}")
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CLONE_TARGET_DIR}

# The tag that the chart asks for when none is given: `helm install` finds the images of `make images`.
PENSTOCK_TAG=${PENSTOCK_TAG:-$(awk '$1 == "appVersion:" { print $2 }' "$REPOSITORY_ROOT/charts/penstock/Chart.yaml")}
export PENSTOCK_TAG
