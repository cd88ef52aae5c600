# The one network that a cluster shares with the host: a pair of virtual interfaces with four addresses.
# Pods and Services live behind it, in the node's own network namespace, so that every cluster can use
# the same ranges for them.
# shellcheck shell=bash
# shellcheck disable=SC2034 # read by the files that source this one

readonly POD_RANGE=10.244.0.0/16 SERVICE_RANGE=10.96.0.0/16
readonly API_SERVICE_IP=10.96.0.1 DNS_SERVICE_IP=10.96.0.10

# Takes the lowest free number once, and keeps it in the state folder. 198.18.0.0/15 is set aside for
# tests between networks (RFC 2544): nothing real is expected there.
claim_address() {
  (
    exec 7>/run/lock/penstock-addresses.lock
    flock 7
    [[ -f $STATE/number ]] || lowest_free_number >"$STATE/number.new"
    [[ -f $STATE/number ]] || mv "$STATE/number.new" "$STATE/number"
  )
  read_address
}

lowest_free_number() {
  local number
  for number in {1..254}; do
    grep -qsx "$number" "$STATES"/*/number && continue
    ip -o -4 address show | grep -qF " 198.18.$number." && continue
    echo "$number"
    return
  done
  die "254 clusters have state in $STATES: take some down"
}

# Fails when the cluster has never been up.
read_address() {
  local number
  number=$(cat "$STATE/number" 2>/dev/null) || return 1
  HOST_IP=198.18.$number.1
  NODE_IP=198.18.$number.2
  HOST_LINK=penstock$number
}

# The node's end disappears with its namespace, and the host's end with it; at once, if told so.
connect_node() {
  ip link show "$HOST_LINK" >/dev/null 2>&1 && ip link delete "$HOST_LINK"
  ip link add "$HOST_LINK" type veth peer name eth0 netns "$1"
  ip address add "$HOST_IP/30" dev "$HOST_LINK"
  ip link set "$HOST_LINK" up
}

disconnect_node() {
  read_address || return 0
  ip link delete "$HOST_LINK" 2>/dev/null || true
}
