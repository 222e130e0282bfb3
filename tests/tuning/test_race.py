"""`txclf train --time`: the search among kinds of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.encoders import write_encoder
from tests.helpers.files import make_rows, write_csv
from txclf import Classifier, evaluate
from txclf.artifacts import trials
from txclf.config import recipes, run_config
from txclf.core.errors import ConfigError
from txclf.tuning import race, tune


def test_search_without_encoders_varies_the_model_from_scratch() -> None:
    run = race.search(run_config.load(None, ["data.train=a.csv", "name=mine"]), "10m")
    assert (run.name, run.tune.time, run.model.ngrams) == ("mine", "10m", True)
    assert set(run.tune.space) == {"train.learning_rate", "model.hidden_size"}
    first = trials.run_of(run, 0, trials.draw(run, 0))
    assert (first.train.learning_rate, first.model.hidden_size) == (1e-3, 128)


def test_search_keeps_what_the_run_file_says_of_searches() -> None:
    words = ["data.train=a.csv", "tune.metric=valid_accuracy", "tune.max_concurrent=1", "tune.trials=3"]
    run = race.search(run_config.load(None, words), "10m")
    assert (run.tune.metric, run.tune.max_concurrent, run.tune.trials) == ("valid_accuracy", 1, race.TRIALS)


def test_search_keeps_the_keys_of_the_run_file() -> None:
    words = ["data.train=a.csv", "train.learning_rate=0.002", "model.ngrams=false", "tune.scheduler={kind: fifo}"]
    run = race.search(run_config.load(None, words), "10m")
    assert (run.train.learning_rate, run.model.ngrams, run.tune.scheduler.kind) == (0.002, False, "fifo")
    assert set(run.tune.space) == {"model.hidden_size"}
    with pytest.raises(ConfigError, match=r"sets all that is searched, train\.learning_rate and model\.hidden_size"):
        race.search(run_config.load(None, [*words, "model.hidden_size=64"]), "10m")


def test_search_tries_the_kinds_that_fit_the_run_file(tmp_path: Path) -> None:
    write_encoder(tmp_path / "small", "bert")
    frozen = ["data.train=a.csv", "model.pretrained=org/large", "model.freeze=2"]
    run = race.search(run_config.load(None, frozen), "10m", str(tmp_path))
    assert run.tune.space["model.pretrained"].choice == ("org/large", str(tmp_path / "small"))
    notes: list[str] = []
    race.search(run_config.load(None, frozen), "10m", str(tmp_path), notes.append)
    assert [note.partition(":")[0] for note in notes] == ["not tried"]
    for word, key in (("train.pretrain_epochs=2", "pretrain_epochs"), ("model.num_layers=2", "num_layers")):
        with pytest.raises(ConfigError, match=key):
            race.search(run_config.load(None, ["data.train=a.csv", word]), "10m", str(tmp_path))


def test_search_tries_each_encoder_with_its_recipe_first(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_encoder(tmp_path / name, "bert")
    (tmp_path / "notes").mkdir()
    named = write_encoder(tmp_path / "elsewhere" / "own", "bert")
    run = race.search(run_config.load(None, ["data.train=a.csv", f"model.pretrained={named}"]), "1h", str(tmp_path))
    drawn = [trials.draw(run, number) for number in range(4)]
    assert [settings["model.pretrained"] for settings in drawn] == [
        None,
        named,
        str(tmp_path / "large"),
        str(tmp_path / "small"),
    ]
    kinds = [trials.run_of(run, number, settings).model.pretrained for number, settings in enumerate(drawn)]
    assert kinds == [settings["model.pretrained"] for settings in drawn]


@pytest.mark.parametrize(
    ("words", "encoders", "message"),
    [
        (["task=seq2seq"], None, "--time: not for `task: seq2seq`"),
        (["tune.space={train.epochs: {choice: [1, 2]}}"], None, "has a `tune.space` of its own"),
        ([], "missing", "`.*missing` is no folder"),
        ([], "", "holds no folder with a `config.json`"),
    ],
)
def test_search_that_makes_no_sense_is_refused(
    tmp_path: Path, words: list[str], encoders: str | None, message: str
) -> None:
    folder = None if encoders is None else str(tmp_path / encoders)
    with pytest.raises(ConfigError, match=message):
        race.search(run_config.load(None, words), "10m", folder)


def test_search_refuses_what_is_no_time() -> None:
    with pytest.raises(ConfigError, match=r"tune.time"):
        race.search(run_config.load(None, []), "ten minutes")


@pytest.mark.faults
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_race_bundles_the_best_of_both_kinds(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(400, seed=1), header=["text", "label"])
    encoder = write_encoder(tmp_path / "encoder", "bert")
    words = [f"data.train={data}", f"storage={tmp_path}/runs", f"model.pretrained={encoder}", "tokenizer.max_length=24"]
    run = race.search(run_config.load(None, words), "25s")
    with tune.opened(run) as opened:
        found = tune.tune(opened, tune.plan(opened))
    tried = trials.read(run.run_folder)
    assert {trial.settings["model.pretrained"] for trial in tried} == {None, encoder}
    runs = [run_config.load(f"{trials.folder(run.run_folder, trial.number)}/run.yaml") for trial in tried]
    recipe = {None: recipes.scratch(360, 2)["train"], encoder: recipes.pretrained(360)["train"]}
    for one in runs:  # each kind has its own recipe
        expected = recipe[one.model.pretrained]
        keys = ("epochs", "betas", "token_dropout", "layer_decay")
        assert {key: getattr(one.train, key) for key in keys if key in expected} == {
            key: expected[key] for key in keys if key in expected
        }
    best = run_config.load(f"{run.run_folder}/best.yaml")
    assert best.model.pretrained == found.settings["model.pretrained"]
    assert best.train.learning_rate == found.settings["train.learning_rate"]
    assert Classifier.load(f"{run.run_folder}/model")(["a good film"])[0].label in ("neg", "pos")
    scores = evaluate(run.run_folder, [data])
    assert scores["rows"] == 400
