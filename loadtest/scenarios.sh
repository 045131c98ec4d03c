#!/usr/bin/env bash
# The latency and throughput table of a server: raw, cached, expanded, and expanded within a budget, over 1, 8 and 32 connections.
#
# usage: loadtest/scenarios.sh QUERIES_JSONL REPORT_FOLDER [ENDPOINT]
# EXPANDR_LOADTEST names the load generator (default: target/release/expandr-loadtest); DURATION is the time a cell (default 20s).
set -euo pipefail
queries=${1:?a queries.jsonl} folder=${2:?a folder for the reports} endpoint=${3:-http://127.0.0.1:8080}
load=${EXPANDR_LOADTEST:-target/release/expandr-loadtest} duration=${DURATION:-20s}
mkdir -p "$folder"

run() {
    local name=$1
    shift
    echo "== $name"
    "$load" --endpoint "$endpoint" --queries "$queries" --duration "$duration" --report "$folder/$name.json" "$@"
}
run raw --connections 1,8,32 --expansion off --objective 'own.p50<1ms'
run cached --connections 1,8,32 --expansion always --max-tokens 64 --timeout-ms 20000 --cached 1 --hot 4
run always --connections 1,8,32 --expansion always --max-tokens 64 --timeout-ms 30000 --timeout 60s --cached 0
run budget --connections 1,8 --expansion always --max-tokens 64 --timeout-ms 300 --cached 0 --objective 'p99<350ms'
run budget-open-loop --rate 2 --expansion always --max-tokens 64 --timeout-ms 300 --cached 0 --objective 'p99<350ms' --objective 'errors<=0%'
