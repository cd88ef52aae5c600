# What the machine must bring: Debian packages, rights, kernel features, room.
# shellcheck shell=bash

# A command that a package brings, so that the same program from elsewhere (a containerd of Docker's,
# say) is left as it is.
readonly PACKAGE_OF=(
  containerd:containerd
  ctr:containerd
  runc:runc
  /usr/lib/cni/bridge:containernetworking-plugins
  iptables:iptables
  conntrack:conntrack
  ip:iproute2
  nsenter:util-linux
  losetup:mount
  mkfs.ext4:e2fsprogs
  mmdebstrap:mmdebstrap
  buildah:buildah
  openssl:openssl
  curl:curl
  xz:xz-utils
  cc:gcc
  /etc/ssl/certs/ca-certificates.crt:ca-certificates
  /usr/share/doc/libc6-dev:libc6-dev
  /usr/lib/postgresql/15/bin/postgres:postgresql-15
)

readonly MEMORY_WANTED_MB=2048 DISK_WANTED_MB=4096

packages_missing() {
  local entry
  for entry in "${PACKAGE_OF[@]}"; do
    have "${entry%%:*}" || echo "${entry#*:}"
  done | sort -u
}

have() {
  if [[ $1 == /* ]]; then [[ -e $1 ]]; else command -v "$1" >/dev/null; fi
}

setup() {
  local packages
  need_root setup
  mapfile -t packages < <(packages_missing)
  if ((${#packages[@]})); then
    have apt-get || die "setup installs with apt-get, which is not here: install these by hand: ${packages[*]}"
    say "installing ${packages[*]}"
    # RUNLEVEL=1 keeps the packages from starting their services: a cluster runs its own.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt_get update
    [[ " ${packages[*]} " != *" postgresql-15 "* ]] || forbid_default_database
    apt_get install --yes --no-install-recommends "${packages[@]}"
  fi
  say "everything that the cluster needs is installed"
}

# Debian would otherwise create a database cluster and start it: only the programs are wanted.
forbid_default_database() {
  apt_get install --yes --no-install-recommends postgresql-common
  sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
}

apt_get() {
  apt-get -qq -o Dpkg::Options::=--force-confold "$@" >/dev/null ||
    die "apt-get $1 failed: the lines above say why; run 'cluster setup' again when it is mended"
}

need_root() {
  ((EUID == 0)) || die "'$1' makes namespaces, mounts and cgroups and needs root: run it with sudo"
}

# Asked before a cluster is started, so that what is missing is one sentence and not a log to read.
need_machine() {
  local packages filesystem
  mapfile -t packages < <(packages_missing)
  ((${#packages[@]} == 0)) || die "missing: ${packages[*]}: run 'cluster setup' first"
  for filesystem in overlay cgroup; do
    grep -qw "$filesystem" /proc/filesystems || modprobe -q "$filesystem" ||
      die "this kernel has no $filesystem: a container cannot run here"
  done
  unshare --mount --pid --net --uts --ipc --fork true 2>/dev/null ||
    die "making a mount, PID or network namespace is not allowed here: a container needs to be privileged"
  [[ -n $(cgroup_hierarchies) ]] || die "no writable cgroup hierarchy under /sys/fs/cgroup: mount it read-write"
  need_room
}

need_room() {
  local memory disk
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  ((memory >= MEMORY_WANTED_MB)) ||
    die "a cluster takes about 1 GiB before the first pod: $memory MiB of memory are free, $MEMORY_WANTED_MB wanted"
  mkdir -p "$STATES"
  disk=$(df --output=avail -m "$STATES" | tail -1)
  ((disk >= DISK_WANTED_MB)) ||
    die "$STATES has $((disk)) MiB free, $DISK_WANTED_MB wanted: make room, or set PENSTOCK_STATE to another disk"
  # The node sees folders of its own under these names.
  case $(realpath "$STATES")/ in
    /run/* | /var/log/* | /var/lib/cni/* | /var/lib/kubelet/* | /proc/* | /sys/* | /dev/*)
      die "PENSTOCK_STATE is $STATES, but a cluster hides that folder from itself: choose one elsewhere" ;;
  esac
}
