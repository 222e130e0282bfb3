"""A run that was stopped, killed, copied, started twice or given more epochs resumes with the same results."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.runs import TINY, go_on, lines, losses, stopped_at, tiny, trained
from txclf import Classifier, api
from txclf.artifacts import attempts, checkpoints
from txclf.config import recipes, run_config
from txclf.config.run_config import RunConfig
from txclf.core import lease, storage
from txclf.core.errors import ConfigError, StorageError
from txclf.data.prepare import prepare
from txclf.training import callbacks, resume
from txclf.training.progress import Progress
from txclf.training.train import RunSummary, check_folder, recorded_data, train

STATEFUL = ["train.eval_every=0.5", "train.micro_batches=2", "train.ema_decay=0.9", "train.token_dropout=0.1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[RunConfig, RunSummary]:
    """Return an uninterrupted run with everything that has a state: dropout, micro-batches, averaged weights."""
    return trained(tmp_path_factory.mktemp("whole"), data, *STATEFUL)


@pytest.mark.parametrize("step", [3, 16, 17, 20])
def test_train_interrupted_anywhere_resumes_to_the_last_bit(
    tmp_path: Path, data: str, whole: tuple[RunConfig, RunSummary], step: int
) -> None:
    unbroken, expected = whole
    broken = tiny(tmp_path, data, *STATEFUL)
    stopped_at(broken, step)
    assert not storage.exists(f"{broken.run_folder}/summary.json")
    assert check_folder(broken, resume=True) is None
    summary = train(broken, prepare(broken), go_on)
    assert lines(broken) == lines(unbroken)
    assert (summary.best, summary.best_step, summary.steps) == (expected.best, expected.best_step, expected.steps)
    texts = ["the film", "score good", "bad plot of the actor"]
    one, two = (Classifier.load(f"{run.run_folder}/model")(texts) for run in (unbroken, broken))
    assert one == two


def test_train_killed_between_checkpoints_logs_each_step_once(tmp_path: Path, data: str) -> None:
    run, _ = trained(tmp_path, data)
    expected = lines(run)
    saved = checkpoints.committed(f"{run.run_folder}/checkpoints")
    storage.remove_folder(saved[-1].path)
    Path(run.run_folder, "summary.json").unlink()
    train(run, prepare(run), go_on)
    assert lines(run) == expected


def test_train_damaged_last_checkpoint_resumes_from_the_one_before(
    tmp_path: Path, data: str, whole: tuple[RunConfig, RunSummary]
) -> None:
    unbroken, expected = whole
    run, notes = tiny(tmp_path, data, *STATEFUL), list[str]()
    stopped_at(run, 20)
    before, last = checkpoints.committed(f"{run.run_folder}/checkpoints")[-2:]
    path = Path(last.path, last.state)
    path.write_bytes(path.read_bytes()[:-1])

    def listen(progress: Progress) -> bool:
        notes.extend(progress.notes)
        return False

    summary = train(run, prepare(run), listen)
    assert f"`{path}`: damaged: its content changed. The run resumes from the last intact" in " ".join(notes)
    assert attempts.read(run.run_folder)[-1].step == before.step < last.step
    assert lines(run) == lines(unbroken)
    assert summary.best == expected.best


def test_check_folder_taken_name_or_changed_settings_raises(tmp_path: Path, data: str) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        check_folder(tiny(tmp_path, data), resume=True)
    run, summary = trained(tmp_path, data, "train.epochs=1")
    with pytest.raises(ConfigError, match="--resume"):
        check_folder(run, resume=False)
    assert check_folder(run, resume=True) == summary
    with pytest.raises(ConfigError, match=r"differs in `model\.hidden_size` \(16, now 32\)"):
        check_folder(tiny(tmp_path, data, "train.epochs=1", "model.hidden_size=32"), resume=True)


def test_train_copied_run_resumes_in_its_new_place(tmp_path: Path, data: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    run, _ = trained(tmp_path, data)
    stopped = tiny(there, data)
    stopped_at(stopped, 5)
    shutil.copytree(there, here)
    shutil.rmtree(there)
    moved = tiny(here, data)
    assert check_folder(moved, resume=True) is None
    prepared = recorded_data(moved)
    assert prepared
    assert prepared.startswith(str(here))
    train(moved, prepared, go_on)
    assert lines(moved) == lines(run)


def test_train_second_driver_in_a_folder_is_refused(tmp_path: Path, data: str) -> None:
    run, refusals = tiny(tmp_path, data, "train.epochs=1"), list[str]()
    prepared = prepare(run)

    def meanwhile(progress: Progress) -> bool:
        if progress.step and not refusals:
            with pytest.raises(ConfigError, match=r"process \d+ on `.*` works in it since") as info:
                train(run, prepared, go_on)
            refusals.append(str(info.value))
        return False

    assert train(run, prepared, meanwhile).attempts == 1
    assert refusals
    assert not Path(run.run_folder, lease.FILE).exists()


def test_train_second_driver_after_an_expired_lease_ends_the_first(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "REPORT_INTERVAL_S", 0.0)
    run = tiny(tmp_path, data, "train.checkpoint_every=1")
    prepared = prepare(run)
    second: list[RunSummary] = []

    def meanwhile(progress: Progress) -> bool:
        if progress.step == 5 and not second:
            Path(run.run_folder, lease.FILE).unlink()
            second.append(train(run, prepared, go_on))
        return False

    with pytest.raises(StorageError, match="another process has resumed this run"):
        train(run, prepared, meanwhile)
    assert second[0].attempts == 2


def words(folder: Path, data: str, *more: str) -> list[str]:
    return [f"storage={folder}", "name=mine", f"data.train={data}", *TINY, *more]


def test_resume_with_more_epochs_trains_a_finished_run_on(tmp_path: Path, data: str) -> None:
    short = api.train({}, words(tmp_path, data, "train.epochs=1"))
    (tmp_path / "mine/metrics.json").write_text("{}")
    longer = api.train({}, words(tmp_path, data, "train.epochs=3"), resume=True)
    assert (short.epochs, longer.epochs, longer.steps) == (1, 3, 3 * short.steps)
    assert run_config.load(tmp_path / "mine/run.yaml").train.epochs == 3
    assert not (tmp_path / "mine/metrics.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train_loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == longer.steps
    # The schedule is that of a run of three epochs from the checkpoint on.
    whole = api.train({}, [*words(tmp_path, data, "train.epochs=3"), "name=whole"])
    other = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in other if "learning_rate" in line}
    assert whole.steps == longer.steps
    assert {
        line["step"]: line["learning_rate"]
        for line in lines
        if line.get("step", 0) > short.steps and "train_loss" in line
    }.items() <= rates.items()
    assert api.train({}, words(tmp_path, data, "train.epochs=3"), resume=True) == longer
    with pytest.raises(ConfigError, match=r"`train\.epochs` \(3, now 2\)\. `train\.epochs` may only grow"):
        api.train({}, words(tmp_path, data, "train.epochs=2"), resume=True)


def test_resume_with_other_settings_names_each_key_and_value(tmp_path: Path, data: str) -> None:
    saved = run_config.load(None, words(tmp_path, data, "train.epochs=1"))
    run = run_config.load(None, words(tmp_path, data, "train.epochs=2", "train.learning_rate=0.5"))
    with pytest.raises(ConfigError) as info:
        resume.require_kept(run, saved, "run.yaml")
    assert "`train.epochs` (1, now 2), `train.learning_rate` (" in str(info.value)
    resume.require_kept(run_config.load(None, words(tmp_path, data, "train.epochs=1", "train.on_nan=skip")), saved, "")


def test_as_resumed_more_epochs_keep_the_recipe_of_the_run() -> None:
    run = run_config.load(None, [])
    saved = recipes.with_recipe(run, 500, 2)
    assert saved.train.betas == (0.9, 0.98)
    longer = resume.as_resumed(run_config.load(None, ["train.epochs=99"]), saved)
    assert longer.train.epochs == 99
    assert longer.train.betas == saved.train.betas
    assert longer.model == saved.model
    assert resume.as_resumed(run, saved).train == saved.train


def test_as_resumed_run_keeps_the_metric_that_ranked_its_checkpoints() -> None:
    saved = run_config.load(None, ["train.monitor=valid_loss"])  # the default of an earlier version
    run = run_config.load(None, [])
    assert resume.as_resumed(run, saved).train.monitor == "valid_loss"
    resume.require_kept(run, saved, "run.yaml")
    with pytest.raises(ConfigError, match=r"differs in `train\.monitor` \(valid_loss, now valid_accuracy\)"):
        resume.require_kept(run_config.load(None, ["train.monitor=valid_accuracy"]), saved, "run.yaml")


def test_documented_keys_that_may_change_are_all() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/train.md").read_text()
    sentence = " ".join(page.partition("must equal those of `run.yaml`.")[2].partition("may change")[0].split())
    assert set(re.findall(r"`train\.(\w+)`", sentence)) == set(resume.CHANGEABLE)


def test_require_extendable_after_early_stopping_raises() -> None:
    resume.require_extendable({"stopped_early": False, "epochs": 3.0})
    with pytest.raises(ConfigError, match=r"stopped early after 3\.00 epochs"):
        resume.require_extendable({"stopped_early": True, "epochs": 3.0})


def test_resume_with_smaller_micro_batches_continues(tmp_path: Path, data: str) -> None:
    settings = ["train.epochs=2", "train.precision=fp32", "model.dropout=0"]
    run = tiny(tmp_path, data, *settings)
    stopped_at(run, 17)
    split = run_config.with_overrides(run, {"train.micro_batches": 4})
    assert check_folder(split, resume=True) is None
    train(split, prepare(split), go_on)
    begun = attempts.read(run.run_folder)
    assert (begun[1].step, begun[1].repeated) == (17, 0)
    whole, _ = trained(tmp_path / "whole", data, *settings)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
