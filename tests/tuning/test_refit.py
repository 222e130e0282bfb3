"""The refit of a winner: its settings and epochs, and its name if they change."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.helpers.searches import summary_of
from txclf.artifacts import trials
from txclf.artifacts.trials import Trial
from txclf.config import recipes, run_config
from txclf.config.dotted import changed, flatten_dotted
from txclf.tuning import tune
from txclf.tuning.refit import refit_run


def test_refit_run_trains_the_winner_with_what_its_rows_settled(tmp_path: Path) -> None:
    given = {"storage": str(tmp_path), "name": "search", "train": {"monitor": "valid_accuracy"}}
    run = run_config.parse(
        {**given, "data": {"train": "a.csv"}, "tune": {"space": {"train.learning_rate": {"choice": [1e-4, 1e-3]}}}}
    )
    settings = {"train.learning_rate": 1e-3}
    trials.write(run.run_folder, Trial(number=3, settings=settings))
    found = [(5, 0.5), (10, 0.9), (15, 0.8)]
    logged = [{"step": n, "epoch": n / 5, "valid_loss": n, "valid_accuracy": value} for n, value in found]
    Path(trials.folder(run.run_folder, 3), "metrics.jsonl").write_text("\n".join(map(json.dumps, logged)) + "\n")
    best = recipes.with_recipe(trials.trial_config(run, settings), rows=5452, labels=6)
    Path(run.run_folder, tune.BEST).write_text(run_config.dump(best))
    again = refit_run(run, summary_of(winner=3, settings=settings), workers=2)
    assert changed(flatten_dotted(best.model_dump()), flatten_dotted(again.model_dump())).keys() == {
        "name",
        "train.epochs",
        "train.train_on_valid",
        "model.ngrams",
        "compute.workers",
    }
    assert (again.name, again.train.epochs, again.train.token_dropout) == ("search-refit-0003", 2, 0.3)

    # A resumed search may find a later epoch best: the earlier refit is not trained on.
    os.makedirs(again.run_folder)
    Path(again.run_folder, "run.yaml").write_text(run_config.dump(again))
    assert refit_run(run, summary_of(winner=3, settings=settings), workers=2) == again
    with open(trials.folder(run.run_folder, 3) + "/metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 25, "epoch": 5.0, "valid_loss": 1.0, "valid_accuracy": 0.95}) + "\n")
    longer = refit_run(run, summary_of(winner=3, settings=settings), workers=2)
    assert (longer.name, longer.train.epochs) == ("search-refit-0003-2", 5)
