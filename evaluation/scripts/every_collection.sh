#!/usr/bin/env bash
# Every system over every collection through the running service: BM25, raw, exact against HNSW, hybrid, and expansion by the
# language model at two lengths and three weights; then the table with its tests.
#
# usage: evaluation/scripts/every_collection.sh DATA_FOLDER WORK_FOLDER [COLLECTION...]
#
# DATA_FOLDER holds BEIR folders; WORK_FOLDER gets index/COLLECTION, run/COLLECTION/SYSTEM and the report. Finished runs are not run
# again, an interrupted one goes on where it stopped. One server a collection is started and stopped here.
# EXPANDR names the binary (default: target/release/expandr), SYSTEMS the systems to run (default: all), SERVE_FLAGS adds flags to the
# server (other models, say), PORT is where it listens (default: 8090).
set -euo pipefail
data=${1:?a folder of BEIR collections} work=${2:?a folder to work in}
shift 2
expandr=${EXPANDR:-target/release/expandr} port=${PORT:-8090}
endpoint=http://127.0.0.1:$port
collections=("$@")
if [ ${#collections[@]} = 0 ]; then
    for folder in "$data"/*/; do
        [ -f "$folder/qrels/test.tsv" ] && collections+=("$(basename "$folder")")
    done
fi
systems=${SYSTEMS:-bm25 raw exact hnsw hybrid expanded64 expanded64-w30 expanded64-w80 expanded128 expanded128-w30 expanded128-w80 hybrid-expanded64}

# Greedy passages of so many tokens, the query's share in the average. The budget is large: nothing may be cut or degrade here.
expansion() {
    echo "{\"mode\":\"always\",\"max_tokens\":$1,\"temperature\":0,\"query_weight\":$2,\"timeout_ms\":250000}"
}

flags_of() {
    case $1 in
        bm25) flags=(--ranking lexical --expansion off) ;;
        raw) flags=(--expansion off) ;;
        exact) flags=(--expansion off --search-mode exact) ;;
        hnsw) flags=(--expansion off --search-mode hnsw) ;;
        hybrid) flags=(--ranking hybrid --expansion off) ;;
        expanded64) flags=(--expansion "$(expansion 64 0.5)") ;;
        expanded64-w30) flags=(--expansion "$(expansion 64 0.3)") ;;
        expanded64-w80) flags=(--expansion "$(expansion 64 0.8)") ;;
        expanded128) flags=(--expansion "$(expansion 128 0.5)") ;;
        expanded128-w30) flags=(--expansion "$(expansion 128 0.3)") ;;
        expanded128-w80) flags=(--expansion "$(expansion 128 0.8)") ;;
        hybrid-expanded64) flags=(--ranking hybrid --expansion "$(expansion 64 0.5)") ;;
        *) echo "unknown system '$1'; known are those in this script" >&2; exit 2 ;;
    esac
}

server=
stop() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}
trap stop EXIT

start() {
    mkdir -p "$work/index" "$work/log"
    # shellcheck disable=SC2086
    "$expandr" serve --listen "127.0.0.1:$port" --index-dir "$work/index/$1" --timeout-ms 300000 --expansion-timeout-ms 250000 \
        ${SERVE_FLAGS:-} >"$work/log/$1.log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        curl -sf "$endpoint/readyz" >/dev/null && return
        kill -0 "$server" 2>/dev/null || { tail -5 "$work/log/$1.log" >&2; exit 1; }
        sleep 0.5
    done
    echo "the server did not become ready within 5 minutes; see $work/log/$1.log" >&2
    exit 1
}

for collection in "${collections[@]}"; do
    todo=()
    for system in $systems; do
        [ -f "$work/run/$collection/$system/metrics.json" ] || todo+=("$system")
    done
    [ ${#todo[@]} = 0 ] && continue
    start "$collection"
    if [ ! -f "$work/index/$collection.loaded" ]; then
        "$expandr" ingest "$data/$collection" --endpoint "$endpoint"
        touch "$work/index/$collection.loaded"
    fi
    for system in "${todo[@]}"; do
        flags_of "$system"
        echo "== $collection: $system"
        "$expandr" eval --endpoint "$endpoint" --collection "$data/$collection" --run "$work/run/$collection/$system" \
            --batch 4 --concurrency 16 "${flags[@]}" || [ $? = 3 ] # 3: finished, but degraded, which every report flags
    done
    stop
done

arguments=()
for collection in "${collections[@]}"; do
    for system in $systems; do
        arguments+=("$system=$work/run/$collection/$system")
    done
done
"$expandr" compare "${arguments[@]}" --baseline raw --collections "$data" --paper --out "$work/report"
