#!/usr/bin/env bash
# Stops what scripts/start_server.sh started, after the requests under way. RUN_DIR: the folder of ascend-m1.pid.
#
#     scripts/stop_server.sh [seconds to wait, default 600]
set -euo pipefail
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
# Whether the process is still the one that was started: after a restart of the machine another may have its number.
runs() {
    [[ $({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null) == *ascend[-_]m1\ serve\ * ]]
}

pid_file=${RUN_DIR:-.}/ascend-m1.pid
if [[ ! -f $pid_file ]]; then
    echo "error: $pid_file not found: nothing was started here" >&2
    exit 2
fi
pid=$(<"$pid_file")
if runs "$pid"; then
    kill -TERM "$pid" 2>/dev/null || true
fi
for ((tenths = 10 * ${1:-600}; tenths > 0; tenths--)); do
    if ! runs "$pid"; then
        rm -f "$pid_file"
        echo "stopped"
        exit
    fi
    sleep 0.1
done
echo "error: process $pid still answers requests: wait longer, or kill -TERM $pid once more to end it now" >&2
exit 2
