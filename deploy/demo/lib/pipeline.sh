# The pipeline under demonstration: installed, applied, watched, its worker killed.
# shellcheck shell=bash

readonly OPERATOR_NAMESPACE=penstock-system
readonly WORKERS="penstock.dev/pipeline=$PIPELINE,app.kubernetes.io/component=worker"
WATCHER=''

install_operator() {
  logged helm helm upgrade --install penstock charts/penstock \
    --namespace "$OPERATOR_NAMESPACE" --create-namespace \
    --set "image.registry=$OPERATOR_REGISTRY,image.tag=$IMAGE_TAG,workerImage.tag=$IMAGE_TAG" \
    --set-string "podAnnotations.penstock\.dev/demo=$IMAGE_CONTENT" \
    --wait --timeout 3m ||
    die "the operator did not become ready: kubectl -n $OPERATOR_NAMESPACE describe pods"
  say "helm installed penstock into $OPERATOR_NAMESPACE"
}

apply_pipeline() {
  in_demo apply -f deploy/demo/pipeline.yaml >"$LOGS/apply.log" 2>&1 ||
    die "the pipeline was refused: $(cat "$LOGS/apply.log")"
  say "kubectl apply -f deploy/demo/pipeline.yaml"
}

# Prints what changes in the status, as it changes.
start_watching() {
  set -m # a process group of its own, so that kubectl ends with it
  watch_status &
  WATCHER=$!
  set +m
}

stop_watching() {
  [[ -n $WATCHER ]] || return 0
  kill -- "-$WATCHER" 2>/dev/null || true
  wait "$WATCHER" 2>/dev/null || true
  WATCHER=''
}

watch_status() {
  local kind name status reason message now
  declare -A seen=()
  while IFS=$'\t' read -r kind name status reason message; do
    # A message of several lines goes on in lines that are neither.
    [[ $kind == phase || $kind == condition ]] || continue
    now="$status $reason"
    [[ ${seen[$kind$name]:-} != "$now" ]] || continue
    seen[$kind$name]=$now
    if [[ $kind == phase ]]; then
      say "phase ${BOLD}${status:--}${PLAIN}"
    else
      say "$(printf '%-17s %s%-7s%s %s' "$name" "$(colour_of "$status")" "$status" "$PLAIN" "$reason: ${message:0:70}")"
    fi
  done < <(follow_status)
}

colour_of() {
  case $1 in
    True) printf '%s' "$GREEN" ;;
    False) printf '%s' "$YELLOW" ;;
    *) printf '%s' "$DIM" ;;
  esac
}

# One line per phase and condition at each change of the object; the API server ends a watch now and then.
follow_status() {
  local template='{"phase\tphase\t"}{.status.phase}{"\n"}'
  template+='{range .status.conditions[*]}{"condition\t"}{.type}{"\t"}{.status}{"\t"}{.reason}{"\t"}{.message}{"\n"}{end}'
  while :; do
    in_demo get cdcpipeline "$PIPELINE" --watch --output="jsonpath=$template" 2>/dev/null || true
    sleep 1
  done
}

wait_until_ready() {
  in_demo wait "cdcpipeline/$PIPELINE" --for=condition=Ready --timeout="${1}s" >"$LOGS/ready.log" 2>&1 ||
    die "the pipeline is not ready after $1 s: kubectl -n $NAMESPACE describe cdcpipeline $PIPELINE"
}

worker_pod() {
  in_demo get pods --selector="$WORKERS" --output='jsonpath={.items[0].metadata.name}'
}

worker_status() {
  in_demo get pod "$1" --output="jsonpath={.status.containerStatuses[0].$2}"
}

# SIGKILL to the worker's process, from a pod on the same node that sees all its processes. A worker cannot
# clean up anything, and its pod and volume stay.
kill_worker() {
  local pod node container restarts killed epoch sequence
  pod=$(worker_pod)
  node=$(in_demo get pod "$pod" --output='jsonpath={.spec.nodeName}')
  container=$(worker_status "$pod" containerID)
  restarts=$(worker_status "$pod" restartCount)
  IFS='|' read -r epoch _ < <(sink_run) || die "the sink knows no run of the pipeline"
  if killed=$(kill_on_node "$node" "${container#*://}"); then
    say "${RED}SIGKILL${PLAIN} to the worker: process $killed of pod $pod"
    within 60 has_restarted "$pod" "$restarts" || die "the worker was not started again: kubectl -n $NAMESPACE describe pod $pod"
  else
    say "this cluster allows no privileged pod (${killed:0:100}...): the worker's pod is deleted without notice instead"
    in_demo delete pod "$pod" --grace-period=0 --force >/dev/null 2>&1
  fi
  within 120 has_new_run "$epoch" || die "no new run of the worker reached the sink: kubectl -n $NAMESPACE logs $(worker_pod)"
  IFS='|' read -r epoch sequence < <(sink_run) || die "the sink does not answer"
  say "the worker is back: run $epoch of the shard, at change $(thousands "$sequence")"
}

has_restarted() {
  (($(worker_status "$1" restartCount) > $2))
}

has_new_run() {
  local epoch
  IFS='|' read -r epoch _ < <(sink_run)
  ((epoch > $1))
}

# kill_on_node NODE CONTAINER: prints the number of the killed process, or why it cannot be done.
kill_on_node() {
  local pod=reaper
  in_demo delete pod "$pod" --ignore-not-found --wait >/dev/null 2>&1
  sed -e "s|@NAME@|$pod|" -e "s|@NODE@|$1|" -e "s|@CONTAINER@|$2|" -e "s|@IMAGE@|$POSTGRES_IMAGE|" \
    deploy/demo/reaper.yaml | in_demo apply -f - >"$LOGS/reaper.log" 2>&1 || { tail -n 1 "$LOGS/reaper.log" && return 1; }
  in_demo wait "pod/$pod" --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s >>"$LOGS/reaper.log" 2>&1 ||
    die "the pod that kills the worker did not: kubectl -n $NAMESPACE logs $pod"
  in_demo logs "$pod"
  in_demo delete pod "$pod" --wait=false >/dev/null
}
