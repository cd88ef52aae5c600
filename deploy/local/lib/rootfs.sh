# Debian folder trees for images. Packages are unpacked, not installed: no package manager, no scripts.
# This file is part of the cache key of what it makes.
# shellcheck shell=bash

make_rootfs() {
  mmdebstrap --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include="$1" bookworm "$2" >mmdebstrap.log 2>&1 || {
    tail -n 20 mmdebstrap.log >&2
    return 1
  }
  # What the packages' scripts would have made.
  cp "$2/usr/share/base-passwd/passwd.master" "$2/etc/passwd"
  cp "$2/usr/share/base-passwd/group.master" "$2/etc/group"
  echo 'nonroot:x:65532:65532::/nonexistent:/usr/sbin/nologin' >>"$2/etc/passwd"
  echo 'nonroot:x:65532:' >>"$2/etc/group"
  [[ -e $2/etc/nsswitch.conf ]] || echo 'hosts: files dns' >"$2/etc/nsswitch.conf"
  rm -rf "${2:?}/var/run"
  ln -s /run "$2/var/run"
  install -d -m 1777 "$2/tmp" "$2/var/tmp"
  # A container has its own, given by the kubelet.
  rm -rf "${2:?}"/dev "$2"/etc/{hostname,resolv.conf}
  mkdir "$2/dev"
  strip_rootfs "$2"
}

strip_rootfs() {
  rm -rf "${1:?}"/usr/share/{doc,info,man,locale,lintian,i18n,bug,perl,perl5} \
    "$1"/usr/lib/*/{perl,perl5,perl-base,gconv} "$1"/usr/bin/{perl*,*-linux-gnu-*} \
    "$1"/var/cache/* "$1"/var/lib/{apt,dpkg}/* "$1"/etc/{apt,perl}
}

# JIT is off in the image, so its compiler (150 MB) can go; the client tools' Perl wrappers have no Perl.
prepare_for_postgres() {
  rm -rf "${1:?}"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*} \
    "$1"/usr/lib/*/lib{LLVM,z3}* "$1"/usr/share/{postgresql-common,zsh,bash-completion}
  find "$1/usr/bin" "$1/usr/sbin" -lname '*pg_wrapper*' -delete
  ln -sfn bash "$1/usr/bin/sh" # initdb runs its parts through a shell
  echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>"$1/etc/passwd"
  echo 'postgres:x:999:' >>"$1/etc/group"
  mkdir -p "$1/docker-entrypoint-initdb.d"
  # Writable for any uid, as in docker.io/library/postgres; the build may not keep an owner.
  install -d -m 1777 "$1/var/lib/postgresql" "$1/run/postgresql"
}
