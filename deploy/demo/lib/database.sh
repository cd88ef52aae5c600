# The demo's two databases: started, filled, loaded, compared.
# shellcheck shell=bash

start_databases() {
  kubectl get namespace "$NAMESPACE" >/dev/null 2>&1 || kubectl create namespace "$NAMESPACE" >/dev/null
  make_secret postgres postgres
  make_secret shop-db penstock
  make_secret warehouse-db penstock
  start_database shop-db shop
  start_database warehouse-db warehouse
  wait_for_database shop-db shop
  wait_for_database warehouse-db warehouse
  in_demo get cdcpipeline "$PIPELINE" >/dev/null 2>&1 || forget_earlier_pipelines
  fill shop-db shop
  fill warehouse-db warehouse
}

# make_secret NAME USER: a password is made once, and kept.
make_secret() {
  in_demo get secret "$1" >/dev/null 2>&1 ||
    in_demo create secret generic "$1" --from-literal="username=$2" \
      --from-literal="password=$(head -c 18 /dev/urandom | base64 | tr '+/' '-_')" >/dev/null
}

start_database() {
  sed -e "s|@NAME@|$1|g" -e "s|@DATABASE@|$2|g" -e "s|@IMAGE@|$POSTGRES_IMAGE|g" deploy/demo/database.yaml |
    in_demo apply -f - >/dev/null
}

wait_for_database() {
  in_demo rollout status "statefulset/$1" --timeout=180s >"$LOGS/rollout.log" 2>&1 ||
    die "$1 did not start: kubectl -n $NAMESPACE describe pod $1-0"
  within 60 sql "$1" "$2" 'SELECT 1' || die "$1 does not answer: kubectl -n $NAMESPACE logs $1-0"
  say "$1 runs PostgreSQL $(sql "$1" "$2" 'SHOW server_version')"
}

# The role's password comes in by standard input's first line, so that it is in no list of processes.
fill() {
  local password
  password=$(in_demo get secret "$1" -o 'go-template={{.data.password | base64decode}}')
  { printf "\\\\set password '%s'\n" "$password" && cat "deploy/demo/$2.sql"; } |
    in_demo exec -i "$1-0" -- psql --no-psqlrc --quiet --username=postgres --dbname="$2" >"$LOGS/fill-$2.log" 2>&1 ||
    die "the database $2 was not filled: see $LOGS/fill-$2.log"
}

# Copied tables stay when a pipeline is deleted, and with `Retain` its slot and state, too. A new pipeline would
# refuse to write into them.
forget_earlier_pipelines() {
  local slots="SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'penstock%'"
  shop "$slots" >"$LOGS/forget.log" 2>&1 || die "an earlier slot was not dropped: see $LOGS/forget.log, or make demo-down"
  warehouse 'DROP SCHEMA IF EXISTS penstock, public CASCADE; CREATE SCHEMA public' >>"$LOGS/forget.log" 2>&1 ||
    die "the warehouse could not be emptied: see $LOGS/forget.log, or make demo-down"
}

# sql SERVER DATABASE STATEMENT: its rows, unaligned, separated by |.
sql() {
  in_demo exec "$1-0" -c postgres -- psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 \
    --username=postgres --dbname="$2" --command="$3"
}

shop() { sql shop-db shop "$1"; }
warehouse() { sql warehouse-db warehouse "$1"; }

# --- the customers ---

start_load() {
  in_demo delete job customers --ignore-not-found --wait >/dev/null
  in_demo create configmap load --from-file=deploy/demo/load --dry-run=client -o yaml | in_demo apply -f - >/dev/null
  sed -e "s|@IMAGE@|$POSTGRES_IMAGE|g" -e "s|@RATE@|$RATE|g" -e "s|@SECONDS@|$LOAD_SECONDS|g" deploy/demo/load.yaml |
    in_demo apply -f - >/dev/null
  within 60 customers_are_there || die "no customer came: kubectl -n $NAMESPACE logs job/customers"
  CHANGES_BEFORE=$(changes_made)
  say "customers order, pay, cancel: $RATE transactions a second"
}

customers_are_there() {
  (($(shop "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") > 0))
}

# A load that ended early has shown less than it should.
stop_load() {
  customers_are_there || die "the customers left too early: kubectl -n $NAMESPACE logs job/customers"
  in_demo delete job customers --wait >/dev/null
  within 60 customers_have_left || die "the customers do not leave: kubectl -n $NAMESPACE get pods"
  say "they made $(thousands $(($(changes_made) - CHANGES_BEFORE))) changes"
}

customers_have_left() {
  ! customers_are_there
}

changes_made() {
  # The statistics of a backend arrive within a second.
  sleep 1
  shop 'SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables'
}

# --- source and sink ---

# The end of the last change that the sink holds, as the sink itself records it.
sink_position() {
  warehouse "SELECT end_lsn FROM penstock.checkpoint WHERE namespace = '$NAMESPACE' AND name = '$PIPELINE'"
}

sink_run() {
  warehouse "SELECT epoch, sequence FROM penstock.checkpoint WHERE namespace = '$NAMESPACE' AND name = '$PIPELINE'"
}

sink_has_reached() {
  [[ $(warehouse "SELECT bool_and(end_lsn >= '$1') FROM penstock.checkpoint
                  WHERE namespace = '$NAMESPACE' AND name = '$PIPELINE'") == t ]]
}

wait_until_caught_up() {
  local head
  head=$(shop 'SELECT pg_current_wal_insert_lsn()')
  say "the shop's log ends at $head"
  within 120 sink_has_reached "$head" ||
    die "the warehouse stands at $(sink_position) after two minutes: kubectl -n $NAMESPACE describe cdcpipeline $PIPELINE"
  say "the warehouse stands at $(sink_position): nothing is missing"
}

# Rows, and a hash over all their columns that does not depend on their order.
content_of() {
  echo "SELECT count(*), left(md5(coalesce(sum(hashtextextended(t::text, 0)), 0)::text), 16) FROM public.$1 AS t"
}

compare() {
  local table source sink equal differing=0
  printf '\n        %s%-14s %12s %12s   %-16s   %-16s   %s%s\n' "$BOLD" \
    table 'source rows' 'sink rows' 'source hash' 'sink hash' equal "$PLAIN"
  for table in $(shop "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"); do
    source=$(shop "$(content_of "$table")")
    sink=$(warehouse "$(content_of "$table")" 2>/dev/null) || sink='-|-'
    equal="${GREEN}yes${PLAIN}"
    [[ $source == "$sink" ]] || { equal="${RED}NO${PLAIN}" && differing=$((differing + 1)); }
    printf '        %-14s %12s %12s   %-16s   %-16s   %s\n' "$table" \
      "$(thousands "${source%|*}")" "$(thousands "${sink%|*}")" "${source#*|}" "${sink#*|}" "$equal"
  done
  echo
  ((differing == 0)) || die "$differing tables differ: please report this, with the folder $LOGS"
}
