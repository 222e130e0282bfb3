"""Base class of the run-file sections."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from txclf.config.base import CheckpointEvery, Paths, Section, Weights, csv_delimiter, text_encoding


class Example(Section):
    """Section with one key."""

    rate: float = 0.5
    """Rate of the example."""


@pytest.mark.parametrize("settings", [{"rat": 1}, {"rate": float("nan")}, {"rate": float("inf")}, {"rate": "x"}])
def test_section_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(settings)


def test_section_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Example().rate = 1.0


def test_section_docstring_describes_key() -> None:
    assert Example.model_fields["rate"].description == "Rate of the example."


def test_paths_single_string_becomes_tuple() -> None:
    paths: TypeAdapter[tuple[str, ...]] = TypeAdapter(Paths)
    assert paths.validate_python("a.csv") == ("a.csv",)
    assert paths.validate_python(["a.csv", "b.csv"]) == ("a.csv", "b.csv")
    with pytest.raises(ValidationError):
        paths.validate_python([])


def test_paths_take_path_objects_and_name_the_argument_of_a_table() -> None:
    paths: TypeAdapter[tuple[str, ...]] = TypeAdapter(Paths)
    assert paths.validate_python(Path("a.csv")) == ("a.csv",)
    assert paths.validate_python(["a.csv", Path("b.csv")]) == ("a.csv", "b.csv")
    with pytest.raises(ValidationError, match=r"found a table \(`Table`\)\. Pass it as an argument instead"):
        paths.validate_python(pa.table({"text": ["a"]}))


def test_weights_yaml_numbers_and_booleans_become_labels() -> None:
    weights: TypeAdapter[dict[str, float]] = TypeAdapter(Weights)
    assert weights.validate_python({0: 2, "a": 4}) == {"0": 2.0, "a": 4.0}
    assert weights.validate_python({False: 2}) == {"false": 2.0}


@pytest.mark.parametrize("value", [200, 0.25, "90s", "10m", "1.5h"])
def test_checkpoint_every_accepts_steps_shares_and_times(value: object) -> None:
    assert TypeAdapter[object](CheckpointEvery).validate_python(value) == value


@pytest.mark.parametrize("value", [0, 1.5, "10", "10d", "-5m"])
def test_checkpoint_every_refuses_other_values(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter[object](CheckpointEvery).validate_python(value)


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "latin-1", "utf-16", "utf-32", "gb18030", "utf-8-sig"])
def test_text_encoding_known_name_is_kept(name: str) -> None:
    assert text_encoding(name) == name


@pytest.mark.parametrize("name", ["", "no such", "base64", "rot13", "undefined", "utf-8\0"])
def test_text_encoding_unknown_name_raises(name: str) -> None:
    with pytest.raises(ValueError, match="unknown encoding"):
        text_encoding(name)


def test_csv_delimiter_is_one_character() -> None:
    assert [csv_delimiter(value) for value in (";", "|", "\t", "\\t", "tab")] == [";", "|", "\t", "\t", "\t"]
    for value in ("", "ab", '"', "\n", "\r", "\0"):
        with pytest.raises(ValueError, match="cannot separate columns"):
            csv_delimiter(value)
