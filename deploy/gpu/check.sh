#!/usr/bin/env bash
# The checks of a GPU: that encoder and language model compute what they compute on the CPU, and how fast everything is.
# usage: deploy/gpu/check.sh [--device cuda|cpu] [--out FOLDER]
#   --device cpu   tries the checks themselves, on a machine without a GPU: both servers then run on the CPU
#   BIN, MODELS    programs and models; beside `deploy`, as unpack.sh leaves them, by default
#   AT_ONCE (1,2,4,8,16,32,64,128,256), TOKENS (64,128)   of the table of passages
#   DURATION (10s)     of each load;  STEPS (20) of each trainer
#   PAPER              a folder on a disk with 17 GB free: the language model's table again, with random weights of
#                      Llama-3-8B's shape, made there; SHAPE has flags of random_llama for another shape
# Everything that it prints is also in FOLDER/report.md (default: ./gpu-check). Ends with 1 when something was wrong.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) device=cuda out=gpu-check
while (($#)); do
    case $1 in
    --device) device=${2:?a device}; shift 2 ;;
    --out) out=${2:?a folder}; shift 2 ;;
    *) echo "check.sh: there is no $1; its head lists what there is" >&2; exit 2 ;;
    esac
done
root=$(cd "$here/../.." && pwd)
bin=${BIN:-$root/bin} models=${MODELS:-$root/models}
probe() { python3 "$here/probe.py" "$@"; }
for program in expandr expandr-loadtest step_bench random_llama; do
    [[ -x $bin/$program ]] || { echo "check.sh: $bin/$program is missing; build.sh makes it, BIN says where it is" >&2; exit 2; }
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
exec > >(tee "$out/report.md") 2>&1
# Libraries that were packed beside the programs.
[[ -d $root/lib ]] && export LD_LIBRARY_PATH=$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

servers=()
stop() {
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${servers[@]}"; do wait "$pid" 2>/dev/null || true; done
    servers=()
}
trap 'stop; rm -rf "$work"' EXIT

# start NAME DEVICE [FLAGS]: a server without deadlines worth speaking of and without a cache; sets url and pid.
start() {
    local name=$1 place=$2 port
    shift 2
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    "$bin/expandr" serve --listen "127.0.0.1:$port" --models-dir "$models" --index-dir "$work/$name" --device "$place" \
        --expander-concurrency 256 --expander-queue 512 --permits 1024 --cache-mib 0 --timeout-ms 900000 \
        --expansion-timeout-ms 900000 --expansion-max-tokens 512 "$@" >"$out/$name.log" 2>&1 &
    pid=$!
    servers+=("$pid")
    local began=$SECONDS
    until curl -fs -o /dev/null "$url/readyz"; do
        kill -0 "$pid" 2>/dev/null || { echo "the server $name ended:"; tail -n 5 "$out/$name.log"; exit 1; }
        ((SECONDS - began < 600)) || { echo "the server $name is not ready after ten minutes"; exit 1; }
        sleep 1
    done
    echo "server $name on $place: ready after $((SECONDS - began)) s"
}

memory() {
    [[ $device == cpu ]] || nvidia-smi --query-gpu=memory.used --format=csv,noheader | sed 's/^/GPU memory in use: /'
}

wrong=0
holds() { "$@" || { wrong=1; echo "WRONG: $*"; }; }

echo "# Checks on $device, $(date -u +%FT%TZ)"
"$bin/expandr" --version
[[ $device == cpu ]] || nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader
echo "$(nproc) CPUs, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"

echo "## Against the CPU"
start reference cpu
reference=$url
start device "$device"
memory
holds probe vectors "$reference" "$url"
holds probe texts "$reference" "$url"
kill "${servers[0]}"

echo "## Passages"
holds probe expansions "$url" --at-once "${AT_ONCE:-1,2,4,8,16,32,64,128,256}" --tokens "${TOKENS:-64,128}"
memory

echo "## POST /search"
probe fill "$url"
probe queries "$work/queries.jsonl"
for load in "raw --expansion off" "always --expansion always --max-tokens 64 --timeout-ms 60000 --cached 0"; do
    # The words of a load are split on purpose: none holds a space.
    # shellcheck disable=SC2086
    set -- $load
    name=$1
    shift
    holds "$bin/expandr-loadtest" --title "$name" --endpoint "$url" --queries "$work/queries.jsonl" \
        --connections "${CONNECTIONS:-1,8,32}" --duration "${DURATION:-10s}" --warmup 2s --timeout 120s --pid "$pid" \
        --report "$out/$name.json" --html "$out/$name.html" "$@"
done
stop

echo "## Steps of the trainers"
probe steps "$work/steps.json" --pairs "${PAIRS:-32}" --preferences "${PREFERENCES:-2}"
for step in "contrastive all-minilm-l6-v2" "dpo smollm2-135m-instruct"; do
    # shellcheck disable=SC2086
    set -- $step
    for place in cpu ${device/#cpu/}; do
        echo "$1 on $place:"
        "$bin/step_bench" "$1" "$models/$2" "$work/steps.json" "${STEPS:-20}" "$place" | python3 -c '
import json, statistics, sys
report = json.loads(sys.stdin.read() or sys.exit("WRONG: the step bench gave no report"))
seconds, losses = report["seconds"], report["losses"]
print(f"step median {statistics.median(seconds):.3f} s, first {seconds[0]:.3f} s, loss {losses[0]:.5f} to {losses[-1]:.5f}")' ||
            wrong=1
    done
done

if [[ -n ${PAPER:-} ]]; then
    echo "## Llama-3-8B's shape, random weights"
    # shellcheck disable=SC2086
    [[ -d $PAPER/random-llama ]] || "$bin/random_llama" "$PAPER/random-llama" "$models/smollm2-135m-instruct" ${SHAPE:-}
    start paper "$device" --expander "$PAPER/random-llama"
    memory
    holds probe expansions "$url" --at-once "${AT_ONCE:-1,2,4,8,16,32,64,128,256}" --tokens "${TOKENS:-64,128}"
    memory
    stop
fi
((wrong == 0)) && echo "everything holds" || echo "something was wrong"
exit $wrong
