#!/usr/bin/env bash
# Runs a txclf command that may be restarted: adds `--resume` if the run exists.
#
#   txclf-again train run.yaml storage=/storage/runs
set -euo pipefail

if python -m txclf.launch.resumable "$@"; then set -- "$@" --resume; fi
exec python -m txclf "$@"
