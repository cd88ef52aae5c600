# The configuration files of a node's daemons, written anew at every start.
# shellcheck shell=bash

write_configuration() {
  mkdir -p "$STATE"/{bin,conf/cni,log,var-log,cni,etcd,kubelet,containerd,volumes}
  link_binaries
  write_containerd_configuration >"$STATE/conf/containerd.toml"
  write_pod_network_configuration >"$STATE/conf/cni/10-pods.conflist"
  write_kubelet_configuration >"$STATE/conf/kubelet.yaml"
  write_node_environment >"$STATE/conf/node.env"
  # The only name server that a pod with `dnsPolicy: Default` may ask is one that is not there: the
  # host's is out of its reach, and waiting for it would take seconds.
  echo "nameserver 127.0.0.1" >"$STATE/conf/resolv.conf"
  install -m 600 "$STATE/pki/admin.kubeconfig" "$KUBECONFIG_FILE"
}

# One binary, one name per component: `ps` and the tools show what runs.
link_binaries() {
  local component
  for component in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    ln -sfn "$(binary kube)" "$STATE/bin/$component"
  done
  ln -sfn "$(binary helm)" "$STATE/bin/helm"
  ln -sfn "$(binary volumes)" "$STATE/bin/volumes"
}

write_node_environment() {
  cat <<ENV
NAME=$NAME
STATE=$STATE
HOST_IP=$HOST_IP
NODE_IP=$NODE_IP
POD_RANGE=$POD_RANGE
SERVICE_RANGE=$SERVICE_RANGE
ENV
}

write_containerd_configuration() {
  cat <<TOML
version = 2
root = "$STATE/containerd/root"
state = "$STATE/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "$STATE/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  # Lowering a score is forbidden in many containers and sandboxes, and runc dies of it.
  restrict_oom_score_adj = true
  sandbox_image = "$PAUSE_IMAGE"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/conf/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
}

write_pod_network_configuration() {
  cat <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_RANGE"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

write_kubelet_configuration() {
  cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  x509: {clientCAFile: $STATE/pki/ca.crt}
tlsCertFile: $STATE/pki/kubelet.crt
tlsPrivateKeyFile: $STATE/pki/kubelet.key
containerRuntimeEndpoint: unix://$STATE/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [$DNS_SERVICE_IP]
resolvConf: $STATE/conf/resolv.conf
maxPods: 250
oomScoreAdj: 0
# Images are loaded, never pulled: one that is thrown away would not come back.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
YAML
}
