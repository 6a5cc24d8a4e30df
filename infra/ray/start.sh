#!/usr/bin/env bash
# Starts Ray on a node of aws.yaml: `start.sh head` or `start.sh worker`.
set -euo pipefail
cd "$(dirname "$0")/../.."

set -a
source infra/ray/ray.env  # how Ray and Serve are set up
source ~/.tritext/node.env  # secrets, by node_secrets.py
set +a
[[ $RAY_AUTH_MODE == token && -s $RAY_AUTH_TOKEN_PATH ]] || { echo "no token: Ray would be open to everybody" >&2; exit 1; }

.venv/bin/python -m infra.haproxy ~/.tritext
export RAY_SERVE_HAPROXY_BINARY_PATH=$HOME/.tritext/haproxy  # only now: it also says which one the first is made of
ulimit -Sn "$(ulimit -Hn)"  # a file for each connection
.venv/bin/ray stop
if [[ $1 == head ]]; then
    # Nothing of the service runs here but what Serve itself puts on the head.
    .venv/bin/ray start --head --num-cpus=0 --port=6379 --metrics-export-port=8080 --disable-usage-stats \
        --dashboard-host=127.0.0.1 --autoscaling-config="$HOME/ray_bootstrap_config.yaml"
else
    .venv/bin/ray start --address="$RAY_HEAD_IP:6379" --metrics-export-port=8080 --disable-usage-stats
fi
