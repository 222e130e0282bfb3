"""Whether a command that is started again has a run to resume: `python -m txclf.launch.resumable train mine.yaml …`.

Exit code 0 means that it has. `cluster/again.sh` and `cluster/slurm.sh` ask before they add `--resume`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from txclf.artifacts import run_names
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import TxclfError

VERBS = ("train", "distill", "tune")
ENDS = ("summary.json", "search.json")
"""Files that mark a finished run or search."""


def has_run(verb: str, words: Sequence[str]) -> bool:
    """Return True if the run or search of a command has begun, without a `name` if the last one has not ended.

    Raises the errors of a run file.
    """
    run_file = next((word for word in words if word.endswith((".yaml", ".yml"))), None)
    if verb not in VERBS or run_file is None:
        return False
    options = [word for word in words if word.startswith("-")]
    run = run_config.load(run_file, [word for word in words if "=" in word and word not in options])
    is_search = verb == "tune" or any(word.startswith("--time") for word in options)
    with run_names.named(run, run_file, resume=True, is_search=is_search) as found:
        names = set(storage.list_folder(found.run_folder))
    is_named = "name" in run.model_fields_set
    return "run.yaml" in names and (is_named or not names.intersection(ENDS))


if __name__ == "__main__":
    try:
        sys.exit(not has_run(sys.argv[1], sys.argv[2:]))
    except TxclfError:  # which the command itself reports
        sys.exit(1)
