# A cluster's own certificate authority, its certificates, and the kubeconfigs that carry them.
# shellcheck shell=bash

readonly CERTIFICATE_DAYS=365

make_certificates() {
  local pki=$STATE/pki
  [[ ! -f $pki/complete ]] || return 0
  rm -rf "$pki"
  (umask 077 && mkdir -p "$pki")
  openssl_quietly req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$CERTIFICATE_DAYS" \
    -subj "/CN=penstock-$NAME" -keyout "$pki/ca.key" -out "$pki/ca.crt"
  openssl_quietly ecparam -genkey -name prime256v1 -noout -out "$pki/service-accounts.key"
  openssl_quietly ec -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub"

  certify apiserver /CN=kube-apiserver \
    "DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes,DNS:localhost,IP:127.0.0.1,IP:$API_SERVICE_IP,IP:$NODE_IP"
  certify kubelet "/O=system:nodes/CN=system:node:$NAME" "DNS:$NAME,IP:$NODE_IP,IP:127.0.0.1"
  certify admin /O=system:masters/CN=admin
  certify controller-manager /CN=system:kube-controller-manager
  certify scheduler /CN=system:kube-scheduler
  certify proxy /CN=system:kube-proxy
  certify volumes /CN=penstock:volumes
  touch "$pki/complete"
}

# certify NAME SUBJECT [ALTERNATIVE_NAMES]: a certificate for client and server, and its kubeconfig.
certify() {
  local path=$STATE/pki/$1
  openssl_quietly req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" \
    -keyout "$path.key" -out "$path.csr"
  openssl_quietly x509 -req -in "$path.csr" -CA "$STATE/pki/ca.crt" -CAkey "$STATE/pki/ca.key" -CAcreateserial \
    -days "$CERTIFICATE_DAYS" -out "$path.crt" \
    -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}")
  rm "$path.csr"
  write_kubeconfig "$1" >"$path.kubeconfig"
}

# The certificates are in the file, not named by it: it can be copied elsewhere and still works.
write_kubeconfig() {
  local pki=$STATE/pki
  cat <<YAML
apiVersion: v1
kind: Config
clusters:
- name: penstock-$NAME
  cluster:
    server: https://$NODE_IP:6443
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$pki/$1.crt")
    client-key-data: $(base64 -w0 "$pki/$1.key")
contexts:
- name: penstock-$NAME
  context: {cluster: penstock-$NAME, user: $1}
current-context: penstock-$NAME
YAML
}

# OpenSSL chats on standard error; it is only wanted when something went wrong.
openssl_quietly() {
  local output
  output=$(openssl "$@" 2>&1) || die "openssl $1 failed: $output"
}
