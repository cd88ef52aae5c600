# Container images without a registry and without Docker: the base by mmdebstrap, the rest by buildah from
# the same Dockerfiles that `docker build` takes. Each is kept as one archive per content of its inputs.
# shellcheck shell=bash

readonly BASE_IMAGE=docker.io/library/debian:bookworm-slim
readonly PAUSE_IMAGE=localhost/penstock-pause:1
COREDNS_IMAGE=localhost/penstock-coredns:$(module_version coredns github.com/coredns/coredns)
readonly COREDNS_IMAGE

readonly IMAGES=(base pause coredns postgres worker operator)

# What the real bookworm-slim holds and a Rust binary may use. A program that needs more is refused here,
# as it would fail there.
readonly BASE_PACKAGES=base-files,base-passwd,libc6,libgcc-s1,netbase,tzdata,zlib1g,libzstd1
readonly POSTGRES_PACKAGES=base-files,base-passwd,libc6,libc-bin,netbase,tzdata,bash,coreutils,findutils,grep,sed,gzip,postgresql-15

image_tag() {
  case $1 in
    base) echo "$BASE_IMAGE" ;;
    pause) echo "$PAUSE_IMAGE" ;;
    coredns) echo "$COREDNS_IMAGE" ;;
    postgres) echo localhost/penstock-postgres:15 ;;
    worker | operator) echo "localhost/penstock-$1:${PENSTOCK_TAG:-dev}" ;;
    *) refuse "'$1' is not an image: there are ${IMAGES[*]}" ;;
  esac
}

# image_archive NAME: the path at which the image is cached, named by a hash of all that goes into it.
image_archive() {
  local inputs
  inputs=$(image_inputs "$1")
  printf '%s/images/%s-%s.tar' "$CACHE" "$1" "$(key_of_input <<<"$inputs")"
}

image_inputs() {
  local program
  image_tag "$1"
  case $1 in
    base) rootfs_inputs "$BASE_PACKAGES" ;;
    postgres)
      rootfs_inputs "$POSTGRES_PACKAGES"
      cat "$REPOSITORY"/deploy/images/postgres*
      ;;
    pause | coredns)
      binary "$1"
      cat "$REPOSITORY/deploy/images/$1.Dockerfile"
      ;;
    worker | operator)
      program=$(cargo_binary "$1")
      image_archive base
      cat "$program" "$REPOSITORY/deploy/$1.Dockerfile" /etc/ssl/certs/ca-certificates.crt | sha256sum
      ;;
  esac
}

# The same C library as the host's, which the binaries are linked with; and the recipe itself.
rootfs_inputs() {
  echo "$1"
  dpkg-query --show libc6
  sha256sum <"$LOCAL_DIR/lib/rootfs.sh"
}

cargo_binary() {
  local path=$CARGO_TARGET_DIR/release/penstock-$1
  [[ -x $path ]] || die "$path is missing: run 'cargo build --release -p penstock-$1' with that target folder first"
  echo "$path"
}

build_node_images() {
  build_image pause
  build_image coredns
}

build_image() (
  archive=$(image_archive "$1")
  [[ ! -f $archive ]] || exit 0
  need_root "building images"
  lock_cache
  case $1 in
    worker | operator) build_image_alone base ;;
    pause | coredns) build_binary_alone "$1" ;;
  esac
  build_image_alone "$1"
)

# Builds in a scratch folder that goes away with the subshell, storage of buildah's included: a build
# leaves nothing behind but its archive, and never meets the storage of the user's other containers.
# The build_* below run in that folder.
build_image_alone() (
  archive=$(image_archive "$1")
  [[ ! -f $archive ]] || exit 0
  mkdir -p "$CACHE/images"
  # Not in one line: `cd ""` stays where it is, which is then removed.
  folder=$(mktemp -d "$CACHE/build.XXXXXX") || exit
  cd "$folder" || exit
  trap 'rm -rf "$folder"; [[ -f $archive ]] || say "the image $1 was not built: the lines above say why"' EXIT
  say "building the image $(image_tag "$1")"
  mkdir context
  "build_$1" "$1"
  buildah_here push --quiet "$(image_tag "$1")" "docker-archive:image.tar:$(image_tag "$1")" >/dev/null
  mv image.tar "$archive"
  say "built $(image_tag "$1"), $(du -m "$archive" | cut -f1) MB"
)

build_base() {
  local container
  make_rootfs "$BASE_PACKAGES" rootfs
  container=$(buildah_here from --quiet scratch)
  tar -C rootfs -cf rootfs.tar .
  buildah_here add --quiet "$container" rootfs.tar / >/dev/null
  buildah_here config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah_here commit --quiet --rm "$container" "$BASE_IMAGE" >/dev/null
  find rootfs -name '*.so*' -printf '%f\n' | sort >"$(image_archive base).libraries"
}

build_postgres() {
  make_rootfs "$POSTGRES_PACKAGES" rootfs
  prepare_for_postgres rootfs
  cp "$REPOSITORY/deploy/images/postgres-entrypoint" context
  build_from images/postgres.Dockerfile "$1" --build-context "rootfs=$PWD/rootfs"
}

build_pause() { build_static "$1"; }
build_coredns() { build_static "$1"; }
build_static() {
  cp "$(binary "$1")" "context/$1"
  build_from "images/$1.Dockerfile" "$1"
}

build_worker() { build_rust "$1"; }
build_operator() { build_rust "$1"; }
build_rust() {
  local program base
  program=$(cargo_binary "$1")
  base=$(image_archive base)
  need_libraries "$program" "$base.libraries"
  buildah_here pull --quiet "docker-archive:$base" >/dev/null
  # Stands in for the stage `build` of the Dockerfile.
  install -D "$program" "stage/out/penstock-$1"
  install -D /etc/ssl/certs/ca-certificates.crt stage/etc/ssl/certs/ca-certificates.crt
  build_from "$1.Dockerfile" "$1" --build-context "build=$PWD/stage"
}

# Without this, a missing library would show only when a pod of it crashes.
need_libraries() {
  local library
  while read -r library; do
    grep -qxF "$library" "$2" ||
      die "$1 needs $library, which $BASE_IMAGE does not hold: link it statically"
  done < <(ldd "$1" | awk '$2 == "=>" { print $1 }')
}

# build_from DOCKERFILE IMAGE [OPTIONS...]
build_from() {
  buildah_here build --quiet --pull-never --format docker --timestamp 0 --tag "$(image_tag "$2")" \
    --file "$REPOSITORY/deploy/$1" "${@:3}" context >/dev/null
}

# No daemon, no overlay mounts, no policy file, so that it works in a container, too.
buildah_here() {
  [[ -f policy.json ]] || echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy.json
  case $1 in
    pull | push | commit | build | from) set -- "$1" --signature-policy "$PWD/policy.json" "${@:2}" ;;
  esac
  BUILDAH_ISOLATION=chroot TMPDIR=$PWD buildah --root "$PWD/storage" --runroot "$PWD/run" --storage-driver vfs "$@"
}

# --- loading them into a cluster ---

load_node_images() {
  wait_until 20 ctr_of version || die "containerd did not start: see $STATE/log/containerd.log"
  load_archive "$(image_archive pause)"
  load_archive "$(image_archive coredns)"
}

# An archive, a name in the list above, or the tag of one of those, which is built if need be.
load_image() {
  local name
  if [[ -f $1 ]]; then
    load_archive "$(realpath "$1")"
    return
  fi
  for name in "${IMAGES[@]}"; do
    if [[ $1 == "$name" || $1 == "$(image_tag "$name")" ]]; then
      build_image "$name"
      load_archive "$(image_archive "$name")"
      return
    fi
  done
  die "'$1' is neither an image archive nor one of: ${IMAGES[*]}"
}

# An archive of the cache is named by its content, so it need not be loaded twice.
load_archive() {
  local mark
  mark=$STATE/images/$(basename "$1")
  [[ $1 != "$CACHE"/images/* || ! -f $mark ]] || return 0
  ctr_of images import "$1" >/dev/null || die "containerd refused $1: is it an image archive (docker save, or OCI)?"
  mkdir -p "$STATE/images"
  touch "$mark"
  say "loaded $(basename "$1")"
}

ctr_of() {
  ctr --address "$STATE/containerd.sock" --namespace k8s.io "$@"
}
