# The Go programs of a cluster, built once per content of their inputs.
# shellcheck shell=bash

readonly GO_PROGRAMS=(kube coredns helm volumes pause)

# binary NAME: the path at which the program is cached. The name holds a hash of everything that goes
# into the build, so that a stale one is never found.
binary() {
  local inputs
  have go || die "no Go compiler was found: install Go $(go_version_wanted) or newer and put it on PATH"
  inputs=$(
    find "$LOCAL_DIR/$1" -type f \( -name 'go.*' -o -name '*.go' \) | sort | xargs cat
    go_in "$1" env GOVERSION GOOS GOARCH
    go_linker_flags "$1"
  )
  printf '%s/bin/%s-%s' "$CACHE" "$1" "$(key_of_input <<<"$inputs")"
}

build_binaries() {
  local name
  for name in "${GO_PROGRAMS[@]}"; do
    build_binary "$name"
  done
}

build_binary() (
  path=$(binary "$1")
  [[ ! -x $path ]] || exit 0
  lock_cache
  build_binary_alone "$1"
)

build_binary_alone() (
  path=$(binary "$1")
  [[ ! -x $path ]] || exit 0
  say "building $1 ($(build_time_of "$1") on two cores)"
  mkdir -p "$CACHE/bin"
  # Built aside and renamed: an interrupted build leaves nothing that looks finished.
  trap 'rm -f "$path.new"' EXIT
  CGO_ENABLED=0 go_in "$1" build -mod=readonly -trimpath -buildvcs=false \
    -ldflags "-s -w $(go_linker_flags "$1")" -o "$path.new" "$(go_package "$1")" ||
    die "building $1 failed: the lines above say why; it needs Go $(go_version_wanted) and the Go module registry"
  mv "$path.new" "$path"
  say "built $1"
)

go_in() (
  cd "$LOCAL_DIR/$1" && GOWORK=off nice -n 5 go "${@:2}"
)

go_package() {
  case $1 in
    helm) echo helm.sh/helm/v3/cmd/helm ;;
    coredns) echo github.com/coredns/coredns ;;
    *) echo . ;;
  esac
}

build_time_of() {
  case $1 in
    kube) echo "6 minutes" ;;
    coredns) echo "3 minutes" ;;
    helm | volumes) echo "1 minute" ;;
    *) echo "seconds" ;;
  esac
}

# A program that does not know its version reports v0.0.0, which clients refuse to talk to.
go_linker_flags() {
  local version
  case $1 in
    kube)
      version=$(module_version kube k8s.io/kubernetes)
      echo "-X k8s.io/component-base/version.gitVersion=$version" \
        "-X k8s.io/component-base/version.gitMajor=1" \
        "-X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")"
      ;;
    helm) echo "-X helm.sh/helm/v3/internal/version.version=$(module_version helm helm.sh/helm/v3)" ;;
  esac
}

# module_version PROGRAM MODULE: the version that go.mod pins.
module_version() {
  awk -v module="$2" '$1 == module { print $2; exit }' "$LOCAL_DIR/$1/go.mod"
}

go_version_wanted() {
  cat "$LOCAL_DIR"/*/go.mod | awk '$1 == "go" { print $2 }' | sort -V | tail -1
}
