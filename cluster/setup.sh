#!/usr/bin/env bash
# Creates or updates .venv in txclf's folder on a node, with the versions of requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."

# All nodes need the same Python; uv downloads it if the system has another.
if [[ ! -x .venv/bin/python ]]; then
    if command -v python3.11 > /dev/null && python3.11 -c 'import ensurepip' 2> /dev/null; then
        python3.11 -m venv .venv
    else
        PATH=$HOME/.local/bin:$PATH
        command -v uv > /dev/null || wget -qO- https://astral.sh/uv/install.sh | sh
        uv venv --seed --python 3.11 .venv
    fi
fi
.venv/bin/python -m pip install --quiet --constraint requirements.lock '.[cluster,pretrained]'
