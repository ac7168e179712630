#!/usr/bin/env bash
# ScaleRL on machines of your own with plain Ray: on the first one `ray.sh head`, on each other `ray.sh worker ADDRESS`, then
# on the first one `ray.sh train RECIPE RUN [--set KEY=VALUE]...`, and `ray.sh stop` everywhere in the end.
#
# The head was started by tests on one machine; NOT RUN on several. Machines need the same Python environment, the same paths to
# model, data and run directory (shared file system), and a network that nobody else reaches: Ray has one token for
# everything, and whoever has it can run any code.
set -euo pipefail
umask 077
PORT=${PORT:-6379}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} RAY_USAGE_STATS_ENABLED=0

case ${1:-help} in
head)
    # The token is made here once. Copy the file to the other machines (scp -p), it is never printed.
    if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
        mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH"
    fi
    address=${NODE_ADDRESS:-$(hostname -I | awk '{print $1}')}
    ray start --head --node-ip-address="$address" --port="$PORT" --include-dashboard=false
    echo "on the others, with $RAY_AUTH_TOKEN_PATH copied there:  ray.sh worker $address:$PORT"
    ;;
worker)
    : "${2:?give the address that 'ray.sh head' printed}"
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || { echo "$RAY_AUTH_TOKEN_PATH: copy it from the head first" >&2; exit 2; }
    ray start --address="$2"
    ;;
train)
    : "${2:?give a recipe}" "${3:?give a run directory}"
    recipe=$2 run=$3
    shift 3
    exec scalerl supervise --run "$run" -- scalerl train "$recipe" --cluster ray --address auto --run "$run" "$@"
    ;;
stop) ray stop ;;
*)
    echo "ray.sh head | worker ADDRESS | train RECIPE RUN [--set KEY=VALUE]... | stop" >&2
    exit 2
    ;;
esac
