#!/usr/bin/env bash
# Starts `ascend-m1 serve` in the background and waits until it answers.
#
#     scripts/start_server.sh [options of ascend-m1 serve]
#     scripts/start_server.sh --config serve/deploy/config.json
#
# Writes its log to output.log and its process id to ascend-m1.pid, in the folder RUN_DIR (default: here).
set -euo pipefail
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
# Whether the process is still the one that was started: after a restart of the machine another may have its number.
runs() {
    [[ $({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null) == *ascend[-_]m1\ serve\ * ]]
}

run_dir=${RUN_DIR:-.}
pid_file=$run_dir/ascend-m1.pid log=$run_dir/output.log

if [[ -f $pid_file ]] && runs "$(<"$pid_file")"; then
    echo "error: it runs already, process $(<"$pid_file"): scripts/stop_server.sh stops it" >&2
    exit 2
fi
: >"$log" # it is read before the process may have made it
nohup ascend-m1 serve "$@" >>"$log" 2>&1 &
pid=$!
echo "$pid" >"$pid_file"
while kill -0 "$pid" 2>/dev/null; do
    if ready=$(grep -m1 '^ascend-m1: .* at http' "$log"); then
        echo "${ready#ascend-m1: }"
        echo "Daemon start success!"
        exit
    fi
    sleep 0.2
done
rm -f "$pid_file"
tail -n 1 "$log" >&2
exit 2
