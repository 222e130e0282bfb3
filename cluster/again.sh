#!/usr/bin/env bash
# Runs a txclf command that may be restarted: adds `--resume` if the run exists.
#
#   txclf-again train run.yaml storage=/storage/runs
set -euo pipefail

run_exists='
import sys
from txclf.config import run_config
from txclf.core import storage
run = run_config.load(sys.argv[1], [word for word in sys.argv[2:] if "=" in word])
sys.exit(not storage.exists(storage.join(run.run_folder, "run.yaml")))'
# On an invalid run file this check fails, and txclf itself prints the error.
if [[ $1 =~ ^(train|tune)$ ]] && python -c "$run_exists" "${@:2}" 2> /dev/null; then
    set -- "$@" --resume
fi
exec python -m txclf "$@"
