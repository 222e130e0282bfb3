#!/usr/bin/env bash
# Starts a Ray cluster in a Slurm job and runs a txclf command on it:
#
#   sbatch --nodes=4 cluster/slurm.sh train jobs/agnews.yaml compute.workers=4 storage=/shared/runs
#
# All nodes must share the submit directory. Activate the .venv first, so that txclf is on PATH.
#SBATCH --job-name=txclf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${SLURM_JOB_ID:?not set: send this script by sbatch}"
shared=${TXCLF_CLUSTER_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}/.ray-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 3000 * 4))  # below the ephemeral ports
ip=${TXCLF_HEAD_IP:-$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# The token is stored in a file, because all users of a node can read command lines.
rm -rf "$shared"
(umask 077 && mkdir -p "$shared" && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$shared/token")
unset RAY_AUTH_TOKEN  # it would take precedence
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/token RAY_USAGE_STATS_ENABLED=0
# By default a node with more processes than CPUs ends idle ones after 1 s, and the next task starts another.
export RAY_idle_worker_killing_time_threshold_ms=600000
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # the nodes end after the run, so there is nothing to wait for

steps=() run=
# shellcheck disable=SC2329
finish() {
    trap '' TERM USR1 INT
    kill "${steps[@]}" 2> /dev/null || true
    wait
    rm -rf "$shared"
}
# shellcheck disable=SC2329
stop() {
    if [[ $run ]]; then kill -TERM "$run" 2> /dev/null || true; else exit 143; fi
}
trap finish EXIT
trap stop TERM USR1 INT

# The script of each node. Ray's sockets need a short path, in a folder that other jobs do not use.
# shellcheck disable=SC2016
on_node='
folder=$(mktemp -d /tmp/ray-XXXXXX)
ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)"
unset RAY_ADDRESS
ray start --block --num-cpus="${SLURM_CPUS_ON_NODE:?}" --temp-dir="$folder" "$@" &
trap "kill $!" TERM INT
wait $!
trap "" TERM INT
wait $!
code=$?
rm -rf "$folder"
exit $code'
start() {
    local name=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$name" --overlap --mem=0 --cpu-bind=none \
        --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" bash -c "$on_node" bash "$@" &> "$shared/$name.log" &
    steps+=($!)
}
start "${nodes[0]}" --head --node-ip-address="$ip" --port="$port" --dashboard-host=127.0.0.1 \
    --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2))
for name in "${nodes[@]:1}"; do start "$name" --address="$ip:$port"; done

export RAY_ADDRESS=$ip:$port
all_joined='
import sys, ray
try:
    ray.init(logging_level=50, log_to_driver=False)
except (ConnectionError, RuntimeError):
    sys.exit(1)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]))'
seconds=${TXCLF_JOIN_S:-300}
deadline=$((SECONDS + seconds))
until timeout 60 python -c "$all_joined" "${#nodes[@]}" &> /dev/null; do
    for step in "${steps[@]}"; do
        if ! kill -0 "$step" 2> /dev/null || ((SECONDS > deadline)); then
            echo "Ray did not start on ${#nodes[@]} nodes within $seconds s; the last lines of its logs:" >&2
            tail -n 15 "$shared"/*.log >&2
            exit 1
        fi
    done
    sleep 1
done
echo "Ray: ${#nodes[@]} nodes; the dashboard: ssh -L 8265:127.0.0.1:$((port + 1)) ${nodes[0]}" >&2

# A requeued job resumes its run, if the first attempt created one.
if [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] && python -m txclf.launch.resumable "$@"; then set -- "$@" --resume; fi

python -m txclf "$@" &
run=$!
while kill -0 "$run" 2> /dev/null; do wait "$run" || true; done  # a signal ends `wait`, not the run
code=0
wait "$run" || code=$?
exit "$code"
