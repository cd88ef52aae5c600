# Starting, stopping and describing one cluster.
# shellcheck shell=bash

# Held while a cluster is changed. Daemons are started without the descriptor, or they would hold it on.
# `down` removes the file, so what was waited for may be another one by now.
lock_cluster() {
  local file=/run/lock/penstock-$NAME.lock
  mkdir -p /run/lock
  while :; do
    exec 9>"$file"
    flock --nonblock 9 || { say "waiting: another command is changing cluster $NAME" && flock 9; }
    [[ ! $file -ef /proc/self/fd/9 ]] || return 0
  done
}

up() {
  local fresh=yes
  need_root up
  need_machine
  build_binaries
  build_node_images
  lock_cluster
  [[ ! -d $STATE ]] || fresh=no
  # What is half made for a first start is of no use; a state with data in it is kept, and `up` goes on.
  trap 'interrupted '"$fresh" INT TERM
  start_node
  load_node_images
  wait_for_api
  install_add_ons
  wait_for_node
  trap - INT TERM
  say "cluster $NAME is ready: export KUBECONFIG=$KUBECONFIG_FILE"
}

interrupted() {
  trap - INT TERM
  if [[ $1 == yes ]]; then
    say "interrupted: removing cluster $NAME"
    stop_node && remove_state
  else
    say "interrupted: 'cluster up $NAME' goes on from here, 'cluster down $NAME' removes it"
  fi
  exit 130
}

# Leaves a running node alone, and starts afresh over what a crash has left.
start_node() {
  if [[ -n $(init_pid) ]] && read_address; then
    say "cluster $NAME is running"
    return
  fi
  stop_node
  # The node mounts folders of its own over these two, which stay empty here.
  mkdir -p "$STATE" /var/lib/cni /var/lib/kubelet
  claim_address
  make_certificates
  write_configuration
  make_cgroups
  say "starting cluster $NAME at $NODE_IP"
  spawn_init
  wait_until 10 init_is_running || die "process 1 of the node did not start: see $STATE/log/node.log"
  connect_node "$(init_pid)"
}

init_is_running() {
  [[ -n $(init_pid) ]]
}

# Joins the cgroup first, so that every process of the cluster is found in it from its first moment on.
# A clean environment: a proxy setting of the caller's would catch the daemons' own traffic.
spawn_init() {
  (
    echo "$BASHPID" >"$(tracking_cgroup)/node/cgroup.procs"
    exec 7>&- 8>&- 9>&-
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      setsid unshare --fork --kill-child --pid --mount-proc --mount --net --uts --ipc --propagation private \
      "$LOCAL_DIR/lib/node" "$STATE/conf/node.env" >"$STATE/log/node.log" 2>&1 </dev/null
  ) &
  disown
}

wait_for_api() {
  wait_until 60 kubectl_of get --raw /readyz || {
    tail -n 3 "$STATE"/log/{node,etcd,kube-apiserver}.log >&2
    die "the API server did not become ready within 60 s: the logs are in $STATE/log"
  }
  say "the API server answers"
}

install_add_ons() {
  sed -e "s|@COREDNS_IMAGE@|$COREDNS_IMAGE|" -e "s|@DNS_SERVICE_IP@|$DNS_SERVICE_IP|" \
    "$LOCAL_DIR"/add-ons/*.yaml | kubectl_of apply --server-side --force-conflicts -f - >/dev/null ||
    die "the cluster refused an add-on: the lines above say why"
}

# After a crash the API still shows the old node as Ready and the old pod as available: only an answer of
# DNS itself, through its Service, shows that kubelet, containerd, kube-proxy and the pod network work.
wait_for_node() {
  wait_or_explain "the node is Ready" kubectl_of wait --for=condition=Ready "node/$NAME" --timeout=1s
  wait_or_explain "DNS is ready" dns_is_ready
  wait_or_explain "pods can be made" kubectl_of get serviceaccount default
}

dns_is_ready() {
  exec_in_node curl --silent --fail --max-time 1 "http://$DNS_SERVICE_IP:8181/ready"
}

wait_or_explain() {
  if ! wait_until 60 "${@:2}"; then
    kubectl_of get nodes,pods -A >&2
    die "waited 60 s until $1, in vain: the logs of cluster $NAME are in $STATE/log"
  fi
  say "$1"
}

down() {
  local keep=$1
  need_root down
  lock_cluster
  stop_node
  if [[ $keep == yes ]]; then
    say "cluster $NAME is stopped; its data is kept in $STATE"
  else
    remove_state
    say "cluster $NAME is gone"
  fi
}

# The end of process 1 is the end of the node: of its processes, mounts, interfaces and packet rules.
stop_node() {
  local pid
  pid=$(init_pid)
  [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true
  wait_until 10 end_stragglers ||
    die "these processes of cluster $NAME cannot be ended: $(cluster_pids | xargs)"
  disconnect_node
  remove_cgroups
}

# What is in the cgroup but not below process 1 (an init that was half started), and what ends slowly.
end_stragglers() {
  local pids
  mapfile -t pids < <(cluster_pids)
  ((${#pids[@]} == 0)) && return
  kill -KILL "${pids[@]}" 2>/dev/null
  return 1
}

# Nothing of the node's is mounted in this mount namespace: this removes files of the cluster only.
remove_state() {
  ! grep -q " $STATE/" /proc/self/mounts || die "something is mounted under $STATE: unmount it first"
  rm -rf --one-file-system "$STATE"
  rm -f "/run/lock/penstock-$NAME.lock"
}

need_running() {
  [[ -n $(init_pid) ]] || die "cluster $NAME does not run: start it with 'cluster up $NAME'"
}

kubectl_of() {
  KUBECONFIG=$KUBECONFIG_FILE "$STATE/bin/kubectl" "$@"
}

helm_of() {
  KUBECONFIG=$KUBECONFIG_FILE "$STATE/bin/helm" "$@"
}

# A command inside the node: its network, its processes, its mounts.
exec_in_node() {
  nsenter --target "$(init_pid)" --pid --mount --net --uts --ipc "$@"
}

status() {
  local pid
  if [[ ! -d $STATE ]]; then
    echo "cluster $NAME does not exist"
    return 1
  fi
  if [[ -z $(init_pid) ]]; then
    echo "cluster $NAME is stopped; its data is in $STATE"
    return 1
  fi
  read_address
  echo "cluster $NAME runs at https://$NODE_IP:6443, kubeconfig $KUBECONFIG_FILE, logs $STATE/log"
  echo
  while read -r pid; do
    printf '%s %s\n' "$(cat "/proc/$pid/comm" 2>/dev/null)" "$(awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status" 2>/dev/null)"
  done < <(cat "$(tracking_cgroup)/node/cgroup.procs") |
    awk 'NF == 2 { count[$1]++; rss[$1] += $2; total += $2 }
      END { for (name in rss) printf "%-16s %3d %6d MiB\n", name, count[name], rss[name] / 1024 | "sort -rnk3"
            close("sort -rnk3"); printf "%-16s     %6d MiB\n", "total", total / 1024 }'
  echo
  kubectl_of get nodes,pods -A
}
