"""Random run files and damaged bundles end with an answer or with a `TxclfError`, never with a traceback."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.bundles import copied
from txclf.cli.main import main
from txclf.config import run_config
from txclf.core.errors import TxclfError
from txclf.inference import bundle
from txclf.inference.load import load_model

BOUNDED = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = [
    f"{section}.{key}" if isinstance(inner, dict) else section
    for section, inner in run_config.RunConfig().model_dump().items()
    for key in (inner if isinstance(inner, dict) else [""])
]
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 10**12, 2**63, -(2**63), 10**30, 10**4000, 2**20, 65_537, 1e-320, 1e308])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["auto", "none", "10m", "9" * 30 + "h", "1e400", "~", "s3://", "file://", "\0", "/", "*", "a" * 5000]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
CHANGES = st.dictionaries(
    st.sampled_from([*KEYS, "tune.space", "tune.scheduler", "new", "data.new"]), VALUES, max_size=4
)
DOMAINS = st.dictionaries(
    st.sampled_from(["choice", "grid", "uniform", "loguniform", "quniform", "randint"]),
    st.lists(SCALARS | VALUES, max_size=3),
    min_size=1,
    max_size=2,
)
SPACES = st.dictionaries(st.sampled_from(KEYS), DOMAINS, max_size=3)


@pytest.fixture
def check_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that runs `txclf config` on the content of a run file, in this process."""
    path = tmp_path / "run.yaml"
    monkeypatch.chdir(tmp_path)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["txclf", "config", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, 2)

    return check


def as_yaml(value: Any) -> bytes:
    """Return a value as YAML, also one that no run file can hold."""
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


@BOUNDED
@given(changes=CHANGES, space=SPACES)
def test_run_file_with_changed_values_gives_no_traceback(
    check_file: Callable[[bytes], None], changes: dict[str, Any], space: dict[str, Any]
) -> None:
    content: dict[str, Any] = {"name": "fuzz", "data": {"train": "rows.csv"}}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            content.setdefault(section, {})
            if isinstance(content[section], dict):
                content[section][name] = value
        else:
            content[section] = value
    if space and isinstance(content.setdefault("tune", {}), dict):
        content["tune"]["space"] = space
    check_file(as_yaml(content))


SAMPLE = b"""name: &n fuzz
data: {train: rows.csv, text: [title, body]}
model: &m {num_layers: 2, hidden_size: 1e2}
train: {<<: *m, epochs: 3, class_weights: {yes: 1, "no": 0x2}}
tune:
  space: {train.learning_rate: {loguniform: [1e-4, 1e-2]}}
"""
PIECES = st.sampled_from(
    [b"*n", b"&n ", b"!!int ", b"!!set ", b"? ", b": ", b"[", b"{", b"- ", b"\n", b"|", b"<<: *m", b"\xff", b"%", b"\t"]
)


@BOUNDED
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SAMPLE)), st.integers(0, 12), PIECES | st.binary(max_size=6)), max_size=6
    )
)
def test_run_file_with_changed_bytes_gives_no_traceback(
    check_file: Callable[[bytes], None], edits: list[tuple[int, int, bytes]]
) -> None:
    content = SAMPLE
    for start, removed, added in edits:
        content = content[:start] + added + content[start + removed :]
    check_file(content)


@BOUNDED
@given(text=st.text(max_size=30) | st.sampled_from(KEYS), value=VALUES)
def test_override_gives_no_traceback(text: str, value: Any) -> None:
    try:
        run_config.load(None, [f"{text}={as_yaml(value).decode('utf-8', 'replace')}"])
        run_config.load(None, [text])
    except TxclfError:
        pass


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return nested JSON with the value at a path replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


JSON = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(
        [math.nan, math.inf, "\ud800", "../../x", "head_tail", "windows", "cls", "multilabel", "seq2seq"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", [bundle.METADATA, bundle.TOKENIZER, bundle.WEIGHTS])
@BOUNDED
@given(data=st.data())
def test_damaged_bundle_gives_no_traceback(tiny_bundle: str, tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Change JSON values or bytes of one file, and write checksums that fit; a bundle that loads must answer."""
    folder = tmp_path / "model"
    if not folder.exists():
        copied(tiny_bundle, tmp_path)
    content = Path(tiny_bundle, name).read_bytes()
    if name != bundle.WEIGHTS and data.draw(st.integers(0, 3)):
        value = json.loads(content)
        value.get("model", {}).pop("merges", None)
        if name == bundle.TOKENIZER:
            value["model"]["vocab"] = dict(list(value["model"]["vocab"].items())[:20])
        for _ in range(data.draw(st.integers(1, 2))):
            value = replaced(value, data.draw(st.sampled_from(places(value))), data.draw(JSON))
        content = json.dumps(value).encode()
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, min(len(content), 3000)))
            content = (
                content[:start] + data.draw(st.binary(max_size=4)) + content[start + data.draw(st.integers(0, 4)) :]
            )
    (folder / name).write_bytes(content)
    if name != bundle.METADATA:
        metadata = json.loads(Path(tiny_bundle, bundle.METADATA).read_bytes())
        metadata["sha256"][name] = hashlib.sha256(content).hexdigest()
        (folder / bundle.METADATA).write_text(json.dumps(metadata))
    try:
        model = load_model(str(folder))
        model(["the quick fox", "", "é \0 \U0001f600"] * 20)
    except TxclfError:
        pass
