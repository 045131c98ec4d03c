#!/usr/bin/env bash
# Four cases of a server: raw, cached, always expanded, and always expanded within a budget of 300 ms.
#
# usage: loadtest/scenarios.sh QUERIES_JSONL REPORT_FOLDER [ENDPOINT]
#
# Two parts: `table` (latency and throughput over 1, 8 and 32 connections) and `limits` (the highest rate that holds the
# case's objectives, and then OVERLOAD times that rate). Settings are environment variables:
#   PARTS (default "table limits"), CASES (default "raw cached always budget")
#   START              a command that starts the server; each run then has a fresh one, whose memory and CPU are recorded
#   PID                the process of a server that runs already, to record the same
#   DURATION (20s)     how long each load is measured;  WARMUP (2s) before it
#   OVERLOAD (10)      times the limit, for OVERLOAD_DURATION (60s; 10m shows whether memory stays flat)
#   EXPANDR_LOADTEST   the load generator (default target/release/expandr-loadtest)
# Each run leaves NAME.json and NAME.html in the folder. The exit code is 1 when an objective was missed, 2 when a load
# could not be run.
set -euo pipefail
queries=${1:?a queries.jsonl} folder=${2:?a folder for the reports} endpoint=${3:-http://127.0.0.1:8080}
load=${EXPANDR_LOADTEST:-target/release/expandr-loadtest}
parts=${PARTS:-table limits} cases=${CASES:-raw cached always budget}
mkdir -p "$folder"
missed=0

run() {
    local name=$1 code=0
    shift
    echo "== $name"
    local process=()
    [[ -n ${START:-} ]] && process=(--start "$START" --server-log "$folder/$name.server.log")
    [[ -n ${PID:-} ]] && process=(--pid "$PID")
    "$load" --title "$name" --endpoint "$endpoint" --queries "$queries" --duration "${DURATION:-20s}" \
        --warmup "${WARMUP:-2s}" --report "$folder/$name.json" --html "$folder/$name.html" "${process[@]}" "$@" || code=$?
    case $code in
    0) ;;
    1) missed=1 ;;
    *) exit 2 ;;
    esac
}

# What is asked: the same for both parts. A search waits for the encoder no longer than a tenth of its deadline: with 2 s
# it is refused where it would have to wait for more than 200 ms.
declare -A ask=(
    [raw]="--expansion off --deadline-ms 2000"
    [cached]="--expansion always --max-tokens 64 --timeout-ms 20000 --deadline-ms 1500 --cached 1 --hot 4"
    [always]="--expansion always --max-tokens 64 --timeout-ms 10000 --timeout 60s --cached 0"
    [budget]="--expansion always --max-tokens 64 --timeout-ms 300 --deadline-ms 300 --cached 0 --degraded-is-good"
)
# Part `limits`: the first rate tried; the case's budget in milliseconds, which an answer may overdraw by 50, at the
# limit and beyond it; and whatever else must hold at the limit.
declare -A start=([raw]=100 [cached]=20 [always]=1 [budget]=5)
declare -A budget=([raw]=250 [cached]=500 [always]=10000 [budget]=300)
declare -A more=([raw]="" [cached]="--objective cached>=99%" [always]="--objective degraded<=1%" [budget]="")

for case in $cases; do
    # The words of a case are split on purpose: none holds a space.
    # shellcheck disable=SC2086
    if [[ " $parts " == *" table "* ]]; then
        run "$case-table" --connections "${CONNECTIONS:-1,8,32}" ${ask[$case]}
    fi
    # shellcheck disable=SC2086
    if [[ " $parts " == *" limits "* ]]; then
        within=$((budget[$case] + 50))
        run "$case-limit" --find-limit "${start[$case]}" ${ask[$case]} ${more[$case]} \
            --objective "p99<=${within}ms" --objective 'errors<=1%' --within "${within}ms" \
            --overload "${OVERLOAD:-10}" --overload-duration "${OVERLOAD_DURATION:-60s}" \
            --overload-objective 'goodput-of-peak>=90%' --overload-objective 'unexpected<=0%' \
            --overload-objective "p99<=${within}ms" \
            $([[ -n ${START:-}${PID:-} ]] && echo --overload-objective 'memory-growth<=5%')
    fi
done
exit $missed
