# Where the demo happens: a local cluster of its own, or the current context of kubectl with images pushed
# to a registry. Sets OPERATOR_REGISTRY, IMAGE_TAG, IMAGE_CONTENT and POSTGRES_IMAGE, and puts kubectl and
# helm on PATH.
# shellcheck shell=bash
# shellcheck disable=SC2034 # those are read by the other parts

readonly LOCAL_CLUSTER=${PENSTOCK_DEMO_CLUSTER:-demo}

check_place() {
  case ${CLUSTER:-local} in
    local)
      ((EUID == 0)) || die "the local cluster makes namespaces, mounts and cgroups and needs root: sudo make demo"
      command -v cargo >/dev/null || die "Rust is missing: install it from https://rustup.rs"
      command -v go >/dev/null || die "Go is missing: install it from https://go.dev/dl"
      ;;
    current)
      [[ -n ${REGISTRY:-} ]] || die "CLUSTER=current needs REGISTRY, to which the images are pushed and from which \
the cluster pulls them: make demo CLUSTER=current REGISTRY=registry.example.com/team"
      command -v kubectl >/dev/null || die "kubectl is missing: CLUSTER=current uses its current context"
      ;;
    *) die "CLUSTER is '$CLUSTER': it is 'local' (a cluster of its own, the default) or 'current' (kubectl's)" ;;
  esac
}

prepare_place() {
  if [[ ${CLUSTER:-local} == local ]]; then
    prepare_local
  else
    prepare_current
  fi
}

# --- a cluster of its own ---

prepare_local() {
  shown deploy/local/cluster setup || die "the packages could not be installed: the lines above say why"
  shown deploy/local/cluster build || die "Kubernetes could not be built: the lines above say why"
  say "compiling operator and worker (5 minutes the first time)"
  compile || die "the code does not compile: the lines above say why"
  shown deploy/local/cluster build-images operator worker postgres || die "an image could not be built: see above"
  shown deploy/local/cluster up "$LOCAL_CLUSTER" || die "the cluster did not start: see above"
  shown deploy/local/cluster load-image "$LOCAL_CLUSTER" operator worker postgres || die "an image was not loaded: see above"
  KUBECONFIG=$(deploy/local/cluster kubeconfig "$LOCAL_CLUSTER")
  export KUBECONFIG PATH
  PATH=$(dirname "$KUBECONFIG")/bin:$PATH
  OPERATOR_REGISTRY=localhost
  IMAGE_TAG=$PENSTOCK_TAG
  # The tag stays while the content changes; this makes a new operator of a new content.
  IMAGE_CONTENT=$(basename "$(deploy/local/cluster image-archive operator)" .tar)
  POSTGRES_IMAGE=localhost/penstock-postgres:15
}

# Cargo's own progress on a terminal, nothing elsewhere.
compile() {
  local quiet=()
  [[ -t 2 ]] || quiet=(--quiet)
  deploy/keep-dates
  nice cargo build "${quiet[@]}" --locked --release -p penstock-operator -p penstock-worker
}

# --- the cluster that kubectl talks to ---

prepare_current() {
  local builder image
  say "using the context $(kubectl config current-context 2>/dev/null || echo '(none)')"
  kubectl --request-timeout=10s get --raw /readyz >/dev/null 2>"$LOGS/kubectl.log" ||
    die "the cluster does not answer: $(tail -n 1 "$LOGS/kubectl.log")"
  put_helm_on_path
  builder=$(image_builder) || die "docker, podman or buildah is needed to build the images; none works here"
  OPERATOR_REGISTRY=${REGISTRY%/}
  # Each state of the code has its own tag, so that no node runs an older one that it kept.
  IMAGE_TAG=demo-$(code_version)
  IMAGE_CONTENT=$IMAGE_TAG
  POSTGRES_IMAGE=${POSTGRES_IMAGE:-docker.io/library/postgres:17}
  for image in operator worker; do
    say "building and pushing $OPERATOR_REGISTRY/penstock-$image:$IMAGE_TAG with $builder"
    logged "build-$image" "$builder" build --file "deploy/$image.Dockerfile" \
      --tag "$OPERATOR_REGISTRY/penstock-$image:$IMAGE_TAG" . ||
      die "$builder did not build the image: see $LOGS/build-$image.log"
    logged "push-$image" "$builder" push "$OPERATOR_REGISTRY/penstock-$image:$IMAGE_TAG" ||
      die "$builder could not push to $OPERATOR_REGISTRY: log in with '$builder login', or see $LOGS/push-$image.log"
  done
}

put_helm_on_path() {
  local helm
  command -v helm >/dev/null && return
  say "helm is missing: building it"
  helm=$(deploy/local/cluster program helm) || die "helm is missing and could not be built: install it"
  mkdir -p "$LOGS/bin"
  ln -sfn "$helm" "$LOGS/bin/helm"
  export PATH=$LOGS/bin:$PATH
}

# Docker's client alone, without its daemon, is of no use.
image_builder() {
  local builder
  for builder in docker podman buildah; do
    if command -v "$builder" >/dev/null && "$builder" info >/dev/null 2>&1; then
      echo "$builder"
      return
    fi
  done
  return 1
}

code_version() {
  local commit changes
  commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
  changes=$(git diff HEAD 2>/dev/null | sha256sum | cut -c1-8)
  echo "$commit-$changes"
}
