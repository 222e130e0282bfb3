"""The run file: defaults, precedence, and problems with their keys."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from txclf.config import recipes, run_config, yaml_text
from txclf.config.base import Section
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute, Data, Model, Tokenizer
from txclf.config.train import Train
from txclf.core.errors import ConfigError, StorageError

JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def problems(*words: str) -> list[str]:
    """Return the lines of the error without the indent; the first has the number of problems."""
    with pytest.raises(ConfigError) as error:
        run_config.load(None, words)
    return [line.strip() for line in str(error.value).splitlines()]


# ---------------------------------------------------------------------------------------------------------- precedence


def test_load_without_file_gives_defaults(tmp_path: Path) -> None:
    defaults = RunConfig(storage=str(Path.cwd() / "runs"))
    assert run_config.load(None) == defaults == run_config.load(write(tmp_path / "run.yaml", ""))


def test_load_overrides_precede_file_and_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "seed: 1\ntrain: {epochs: 5, batch_size: 8}\n")
    run = run_config.load(path, ["train.epochs=7", "model.hidden_size=64", "train.epochs=9"])
    assert (run.seed, run.train.epochs, run.train.batch_size, run.model.hidden_size) == (1, 9, 8, 64)
    assert run.train.micro_batches == RunConfig().train.micro_batches


@pytest.mark.parametrize(
    ("word", "section", "key", "value"),
    [
        ("train.learning_rate=1e-3", "train", "learning_rate", 0.001),
        ("train.learning_rate=2E+0", "train", "learning_rate", 2.0),
        ("train.learning_rate=.5e-3", "train", "learning_rate", 0.0005),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("train.betas=[0.8, 9e-1]", "train", "betas", (0.8, 0.9)),
        ("train.compile=true", "train", "compile", True),
        ("train.class_weights={good: 2, bad: 5e-1}", "train", "class_weights", {"good": 2.0, "bad": 0.5}),
        ("train.class_weights=balanced", "train", "class_weights", "balanced"),
        (
            "train.class_weights={no: 1, off: 2, 010: 3, 1.0: 4, 12:30: 5, null: 6, 2024-01-01: 7, true: 8}",
            "train",
            "class_weights",
            {"no": 1, "off": 2, "010": 3, "1.0": 4, "12:30": 5, "null": 6, "2024-01-01": 7, "true": 8},
        ),
        ("data.text=body", "data", "text", ("body",)),
        ("data.text=[title, body]", "data", "text", ("title", "body")),
        ("data.train=/a=b.csv", "data", "train", ("/a=b.csv",)),
        ("data.label=1e-3x", "data", "label", "1e-3x"),
        ("model.embedding_dropout=null", "model", "embedding_dropout", None),
        ("model.embedding_dropout=", "model", "embedding_dropout", None),
        ("compute={workers: 2}", "compute", "workers", 2),
    ],
)
def test_load_override_values_are_yaml(word: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(run_config.load(None, [word]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_load_override_fills_an_empty_section(tmp_path: Path) -> None:
    assert run_config.load(write(tmp_path / "run.yaml", "train:\n"), ["train.epochs=2"]).train.epochs == 2


def test_load_file_may_merge_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "compute: &two {workers: 2}\ntrain: {<<: {epochs: 4, early_stopping_patience: 1}, epochs: 6}\n",
    )
    run = run_config.load(path)
    assert (run.train.epochs, run.train.early_stopping_patience, run.compute.workers) == (6, 1, 2)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\nname: a\nseed: 2\n", r"not valid YAML: key `seed` is given twice\n.*line 3, column 1"),
        ("train: {epochs: 1, epochs: 1}", "key `epochs` is given twice"),
        ("train:\n  betas: [0.9, {a: 1, a: 2}]\n", "key `a` is given twice"),
        ("- name\n", "expected keys and values, found list"),
        ("just words\n", "expected keys and values, found str"),
        ("a: [1\n", "not valid YAML: "),
        ("name: 2024-99-99\n", "not valid YAML: month must be in 1..12"),
        ("train: {[a]: 1}\n", "not valid YAML: .*unhashable key"),
        ("train: !!python/name:os.system\n", "not valid YAML: could not determine a constructor"),
        ("train: *nowhere\n", "not valid YAML: found undefined alias"),
        ("1: 2\n", r"1 problem:\n.*`1`: unknown key"),
    ],
)
def test_load_invalid_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml`.*{message}"):
        run_config.load(write(tmp_path / "run.yaml", content))


@pytest.mark.parametrize("name", ["rows.csv", "Rows.TSV", "rows.jsonl.gz", "train.parquet"])
def test_load_data_file_names_the_command_that_writes_a_run_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=rf"a data file, not a run file\. Write .* `txclf init .*{name}`"):
        run_config.load(tmp_path / name)


def test_load_setting_in_the_place_of_the_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="Pass the run file before settings"):
        run_config.load("data.train=rows.csv")


def test_load_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml`: no such run file"):
        run_config.load(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"run\.yaml`: not valid YAML: 'utf-8' codec"):
        run_config.load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epochs"], "`train.epochs`: not an override. Write `key=value`, as in `train.epochs=5`"),
        (["=5"], "`=5`: not an override. Write `key=value`"),
        (["seed=2", "seed.more=1"], "`seed.more=1`: `seed` is a value, not a section"),
        (["data.train=[a.csv]", "data.train.0=b.csv"], "`data.train.0=b.csv`: `train` is a value, not a section"),
        (["train={epochs: 1, epochs: 2}"], "the value is not valid YAML: key `epochs` is given twice"),
        (["train.betas=[0.9"], r"`train\.betas=\[0\.9`: the value is not valid YAML"),
        (["name=2024-13-01"], "the value is not valid YAML: month must be"),
        (["data.text=[title, title]"], "`data.text`: `title` comes twice. Name each column once"),
    ],
)
def test_load_invalid_override_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config.load(None, words)


# ------------------------------------------------------------------------------------------------------------ problems


def test_load_reports_every_problem_with_its_key() -> None:
    count, *lines = problems("seed=-1", "train.epochs=many", "train.nope=2", "model.num_heads=3", "data.more.deep=1")
    assert count == "`command line` has 5 problems:"
    assert lines == [
        "`seed`: input should be greater than or equal to 0, not -1",
        f"`data.more`: unknown key. Known keys: {', '.join(Data.model_fields)}.",
        "`model`: `num_heads` (3) must divide `hidden_size` (128). Change one of them.",
        "`train.epochs`: input should be a valid integer, unable to parse string as an integer, not 'many'",
        f"`train.nope`: unknown key. Known keys: {', '.join(Train.model_fields)}.",
    ]


def test_load_unknown_section_lists_the_sections() -> None:
    known = "name, storage, seed, task, data, tokenizer, model, train, distill, generate, compute"
    assert any(line.startswith(f"`optimizer`: unknown key. Known keys: {known}") for line in problems("optimizer.lr=1"))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("name=a/b", "name"),
        ("name=.hidden", "name"),
        ("name=", "name"),
        ("name=2024-01-01", "name"),
        ("storage=[a]", "storage"),
        ("seed=1.5", "seed"),
        ("seed=9223372036854775808", "seed"),
        ("task=translate", "task"),
        ("data=here", "data"),
        ("data.train=3", "data.train"),
        ("data.train=[]", "data.train"),
        ("data.text=[]", "data.text"),
        ("data.text=[a, 1]", "data.text.1"),
        ("data.text=null", "data.text"),
        ("data.label=[a]", "data.label"),
        ("data.valid_fraction=0", "data.valid_fraction"),
        ("data.valid_fraction=1", "data.valid_fraction"),
        ("data.on_bad_row=ignore", "data.on_bad_row"),
        ("tokenizer.kind=char", "tokenizer.kind"),
        ("tokenizer.vocab_size=15", "tokenizer.vocab_size"),
        ("tokenizer.max_length=0", "tokenizer.max_length"),
        ("tokenizer.max_length=70000", "tokenizer.max_length"),
        ("tokenizer.kind=file", "tokenizer"),
        ("tokenizer.file=a.json", "tokenizer"),
        ("model.num_layers=0", "model.num_layers"),
        ("model.dropout=1.0", "model.dropout"),
        ("model.dropout=.nan", "model.dropout"),
        ("train.learning_rate=0", "train.learning_rate"),
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.weight_decay=-0.1", "train.weight_decay"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.betas=[0.9, 0.9, 0.9]", "train.betas"),
        ("train.betas=[0.9, 1.0]", "train.betas.1"),
        ("train.schedule=exponential", "train.schedule"),
        ("train.class_weights=[1, 2]", "train.class_weights"),
        ("train.class_weights=heavy", "train.class_weights"),
        ("train.class_weights={good: -1}", "train.class_weights.good"),
        ("train.precision=fp8", "train.precision"),
        ("train.eval_every=0", "train.eval_every"),
        ("train.eval_every=-1", "train.eval_every"),
        ("train.early_stopping_patience=-1", "train.early_stopping_patience"),
        ("compute.workers=-1", "compute.workers"),
        ("compute.cpus_per_worker=0", "compute.cpus_per_worker"),
    ],
)
def test_load_invalid_value_names_its_key(word: str, key: str) -> None:
    _, *lines = problems(word)
    assert any(line.startswith(f"`{key}`: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.hidden_size=100", "model.num_heads=8"], "`num_heads` (8) must divide `hidden_size` (100)"),
        (["model.hidden_size=12", "model.num_heads=4"], "`position_encoding: rotary` needs an even"),
        (
            ["model.hidden_size=5", "model.num_heads=1", "model.position_encoding=sinusoidal"],
            "needs an even `hidden_size`, not 5",
        ),
    ],
)
def test_load_sizes_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    assert message in "\n".join(problems(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.focal_gamma=2", "train.label_smoothing=0.1"],
            "`focal_gamma` and `label_smoothing` exclude each other",
        ),
        (
            ["train.sampling=balanced", "train.class_weights=balanced"],
            "`sampling: balanced` and `class_weights` both balance the classes",
        ),
        (["train.average_checkpoints=4"], "`average_checkpoints` (4) is more than `keep_checkpoints` (3)"),
        (
            ["train.sampling=balanced", "train.class_weights={a: 2}"],
            "`sampling: balanced` and `class_weights` both balance the classes",
        ),
    ],
)
def test_load_exclusive_training_keys_are_refused(words: list[str], message: str) -> None:
    assert message in "\n".join(problems(*words))


def test_load_odd_hidden_size_with_learned_positions_is_accepted() -> None:
    words = ["model.hidden_size=15", "model.num_heads=5", "model.position_encoding=learned"]
    assert run_config.load(None, words).model.hidden_size == 15


# -------------------------------------------------------------------------------------------------- the resolved file


def test_run_config_is_frozen() -> None:
    run = RunConfig()
    for section, key, value in [(run, "seed", 1), (run.train, "epochs", 1), (run.model, "new", 1)]:
        with pytest.raises(ValidationError):
            setattr(section, key, value)


def test_parse_does_not_change_the_settings() -> None:
    settings: dict[str, Any] = {"data": {"train": "a.csv"}, "train": {"class_weights": {"a": 1}}}
    before = json.dumps(settings)
    run_config.parse(settings)
    assert json.dumps(settings) == before


WORDS = ["name=a-1.b_c", "data.train=[é.csv, 'a: b']", "data.text=[title, body]", "train.betas=[0.5, 1e-7]"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        WORDS,
        ["train.class_weights={'yes': 2, '1': 3e-5}"],
        ["tokenizer={kind: file, file: t.json}", "data.label='1'", "name='12e4'"],
    ],
)
def test_dump_is_loaded_back(tmp_path: Path, words: list[str]) -> None:
    run = run_config.load(None, words)
    assert run_config.load(write(tmp_path / "run.yaml", run_config.dump(run))) == run
    assert recipes.unsettled(run_config.load(str(tmp_path / "run.yaml"))) == recipes.unsettled(run)
    written = yaml.safe_load(run_config.dump(recipes.with_recipe(run, 100, 2)))
    assert list(written) == list(RunConfig.model_fields)
    assert all(
        list(written[name]) == list(type(getattr(run, name)).model_fields) for name in ("data", "model", "train")
    )


def test_run_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_config.load(None, ["name=a", "storage=my/runs"]).run_folder == f"{tmp_path}/my/runs/a"
    assert run_config.load(None, ["name=a", "storage=s3://b/runs/?region=x"]).run_folder == "s3://b/runs/a?region=x"


@pytest.mark.parametrize(
    "word",
    [
        "storage=s3://user:hidden@bucket/runs",
        "storage=s3://user:hid/den@bucket/runs",
        "data.train=[a.csv, 's3://bucket/a.csv?region=x&access_key=hidden']",
        "data.test=https://host/a.csv?sig=hidden",
        "model.pretrained=gs://bucket/model?X-Goog-Signature=hidden",
    ],
)
def test_load_uri_with_credentials_raises_without_showing_them(word: str) -> None:
    with pytest.raises(StorageError, match=r"`\w+://…`: credentials do not belong into a URI") as info:
        run_config.load(None, [word])
    assert "hid" not in str(info.value)
    run_config.load(None, ["storage=gs://anonymous@bucket/runs?retry_limit_seconds=3"])


def violations(settings: object) -> list[str]:
    jsonschema = importlib.import_module("jsonschema")
    schema = json.loads(run_config.schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(settings)]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_load_accepts_the_run_files_of_the_project(path: Path) -> None:
    assert run_config.load(path).name
    assert violations(yaml_text.parse(path.read_text())) == []


def test_schema_refuses_what_parse_refuses() -> None:
    assert violations(RunConfig().model_dump(mode="json")) == []
    assert violations({"data": {"train": "a.csv", "text": ["title", "body"]}}) == []
    unfit: list[dict[str, Any]] = [
        {"nope": 1},
        {"seed": -1},
        {"model": {"dropout": 2}},
        {"data": {"train": []}},
        {"train": {"schedule": "up"}},
    ]
    for wrong in unfit:
        assert len(violations(wrong)) == 1
        with pytest.raises(ConfigError):
            run_config.parse(wrong)


def test_every_key_has_a_description() -> None:
    sections: list[type[Section]] = [Data, Tokenizer, Model, Train, Compute]
    fields = [
        (f"{section.__name__}.{name}", field) for section in sections for name, field in section.model_fields.items()
    ]
    assert [name for name, field in fields if not field.description] == []


def test_load_problems_of_overrides_blame_the_word(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {epochs: 0}\n")
    with pytest.raises(ConfigError) as info:
        run_config.load(tmp_path / "run.yaml", ["train.epochs=3", "train.batch_size=0", "mdoel.x=2"])
    assert str(info.value).startswith("`command line` has 2 problems:\n")
    assert "not 0 (command line: `train.batch_size=0`)" in str(info.value)
    assert "(command line: `mdoel.x=2`)" in str(info.value)
    with pytest.raises(ConfigError) as info:
        run_config.load(tmp_path / "run.yaml", ["train.batch_size=0"])
    assert str(info.value).startswith(f"`{tmp_path}/run.yaml` has 2 problems:\n")
    assert str(info.value).count("command line") == 1


def test_load_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"not 'mena'\. Did you mean `mean`\?"):
        run_config.load(None, ["model.pooling=mena"])
