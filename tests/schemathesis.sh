#!/usr/bin/env bash
# Asks a running server what its own description (GET /openapi.json) allows and forbids, thousands of times, and compares the
# answers with the description: no 5xx, no status, media type, header or body that is not described, no invalid request taken,
# no route without its key. https://schemathesis.readthedocs.io
#
#   tests/schemathesis.sh [options of `st run`, e.g. --include-path /search -n 200]
#
# EXPANDR_BINARY       the program (default: target/release/expandr)
# EXPANDR_MODELS_DIR   the default weights (default: models/store; `expandr models pull` fetches them)
# SCHEMATHESIS_VENV    a Python environment with schemathesis; made where it is missing (default: in a temporary folder)
# SCHEMATHESIS_PORT    the server's port (default: 8391)
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD

binary=${EXPANDR_BINARY:-${CARGO_TARGET_DIR:-target}/release/expandr}
port=${SCHEMATHESIS_PORT:-8391}
url=http://127.0.0.1:$port
folder=$(mktemp -d)
venv=$(realpath -m "${SCHEMATHESIS_VENV:-$folder/venv}")
server=

end() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap end EXIT

[ -x "$venv/bin/st" ] || {
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'schemathesis>=4.32,<5'
}

# Passages of a few tokens: what is asked is how requests are read and answered, not what a language model writes.
key=schemathesis-admin-key
EXPANDR_READ_KEYS=schemathesis-read-key EXPANDR_WRITE_KEYS=schemathesis-write-key EXPANDR_ADMIN_KEYS=$key \
    "$binary" --log-format json serve --listen "127.0.0.1:$port" --index-dir "$folder/index" --feedback on \
    --expansion-max-tokens 64 --expansion-tokens 4 --expansion-min-words 1 2>"$folder/log" &
server=$!
for _ in $(seq 300); do
    curl --silent --fail "$url/readyz" >/dev/null && break
    kill -0 "$server" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.2
done
auth="Authorization: Bearer $key"
curl --silent --fail -X PUT "$url/documents" -H "$auth" -H 'content-type: application/json' -o /dev/null -d '{"documents": [
    {"id": "a", "text": "red apples grow on trees", "metadata": {"kind": "fruit", "year": 2001}},
    {"id": "b", "text": "blue whales swim in oceans", "metadata": {"kind": "animal", "year": 2005}}]}'

status=0
(cd "$folder" && PYTHONPATH=$repository/tests PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1 "$venv/bin/st" \
    --config-file "$repository/tests/schemathesis.toml" run "$url/openapi.json" -H "$auth" "$@") || status=$?
kill -0 "$server" 2>/dev/null || { echo "the server has ended" >&2; tail -5 "$folder/log" >&2; exit 1; }
if grep -q '"a handler panicked"' "$folder/log"; then
    grep '"a handler panicked"' "$folder/log" >&2
    exit 1
fi
exit "$status"
