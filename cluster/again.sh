#!/usr/bin/env bash
# A command of txclf for what begins again by itself: `--resume` is added where the run is there already.
#
#   txclf-again train run.yaml storage=/storage/runs
set -euo pipefail

begun='
import sys
from txclf.config import run_config
from txclf.core import storage
run = run_config.load(sys.argv[1], [word for word in sys.argv[2:] if "=" in word])
sys.exit(not storage.exists(storage.join(run.run_folder, "run.yaml")))'
# A run file that is wrong is told of by txclf itself.
if [[ $1 =~ ^(train|tune)$ ]] && python -c "$begun" "${@:2}" 2> /dev/null; then
    set -- "$@" --resume
fi
exec python -m txclf "$@"
