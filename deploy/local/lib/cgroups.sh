# A cluster's processes are those of its cgroup: the kernel keeps that list, so no stale pid can name a
# stranger's process. Works with cgroup v1, hybrid and v2.
#
#   penstock-NAME/node       process 1 of the node, the daemons, the containers' shims
#   penstock-NAME/kubepods   the pods, made by the kubelet
# shellcheck shell=bash

# Every hierarchy that the kubelet uses, one folder per line.
cgroup_hierarchies() {
  local folder
  if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
    echo /sys/fs/cgroup
    return
  fi
  for folder in /sys/fs/cgroup/*/; do
    folder=${folder%/}
    # `cpu` may be a link to `cpu,cpuacct`; `unified` has no controllers beside v1.
    [[ -L $folder || ! -f $folder/cgroup.clone_children || ! -w $folder ]] || echo "$folder"
  done
}

# The hierarchy in which the processes are counted.
tracking_cgroup() {
  local hierarchy=/sys/fs/cgroup
  [[ -f $hierarchy/cgroup.controllers ]] || hierarchy=$hierarchy/pids
  echo "$hierarchy/$CGROUP"
}

make_cgroups() {
  local hierarchy file
  while read -r hierarchy; do
    mkdir -p "$hierarchy/$CGROUP"
    # A new cpuset (v1) is empty, and nothing may run in it.
    for file in cpuset.cpus cpuset.mems; do
      [[ ! -f $hierarchy/cgroup.clone_children || ! -f $hierarchy/$file ]] ||
        cat "$hierarchy/$file" >"$hierarchy/$CGROUP/$file"
    done
    # With v2, controllers are handed down one level at a time.
    [[ ! -f $hierarchy/cgroup.controllers ]] || hand_controllers_down "$hierarchy"
  done < <(cgroup_hierarchies)
  mkdir -p "$(tracking_cgroup)/node"
}

hand_controllers_down() {
  local controller
  while read -rd ' ' controller; do
    echo "+$controller" >"$1/cgroup.subtree_control" 2>/dev/null || true # some only work at the root
    echo "+$controller" >"$1/$CGROUP/cgroup.subtree_control" 2>/dev/null || true
  done < <(tr '\n' ' ' <"$1/cgroup.controllers")
}

# All processes of the cluster, as the host numbers them.
cluster_pids() {
  find "$(tracking_cgroup)" -name cgroup.procs -exec cat {} + 2>/dev/null || true
}

# Process 1 of the node, as the host numbers it; nothing when the cluster does not run.
init_pid() {
  local pid
  while read -r pid; do
    if awk '/^NSpid:/ { exit !(NF == 3 && $3 == 1) }' "/proc/$pid/status" 2>/dev/null; then
      echo "$pid"
      return
    fi
  done < <(cat "$(tracking_cgroup)/node/cgroup.procs" 2>/dev/null)
}

# In every hierarchy: beside v1 ones, runc makes its folders in `unified`, too.
remove_cgroups() {
  local folder
  for folder in /sys/fs/cgroup/{,*/}"$CGROUP"; do
    [[ ! -d $folder ]] || find "$folder" -depth -type d -exec rmdir {} +
  done
}
