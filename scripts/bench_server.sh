#!/usr/bin/env bash
# Measures a running server at several concurrencies, one table each.
#
#     scripts/bench_server.sh [options of ascend-m1 bench serve]
#     CONCURRENCY="1 16" scripts/bench_server.sh --url http://127.0.0.1:1025 --output-len 64
#
# CONCURRENCY: requests at the same time, in words (default: 1 4 16). Sixteen times as many requests are sent.
set -euo pipefail
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
url=(--url http://127.0.0.1:1025)
[[ " $* " == *" --url "* ]] && url=()
for concurrency in ${CONCURRENCY:-1 4 16}; do
    echo "== $concurrency at a time"
    ascend-m1 bench serve "${url[@]}" --concurrency "$concurrency" --requests $((16 * concurrency)) --warmup 1 "$@"
done
