"""Where pretrained models come from, and which are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.encoders import write_encoder
from txclf import pretrained
from txclf.core.errors import ConfigError


def refused(name: str, revision: str | None = None) -> str:
    """Return the message of the error."""
    with pytest.raises(ConfigError) as raised, pretrained.located(name, revision):
        pass
    return str(raised.value)


def test_a_folder_is_stored_once(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    with pretrained.located(encoder) as found:
        stored = [pretrained.stored(found, encoder, os.fspath(tmp_path / "runs")) for _ in range(2)]
    assert stored[0] == stored[1]
    names = {"config.json", "model.safetensors", "source.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(os.listdir(stored[0])) == names


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    encoder = Path(write_encoder(tmp_path))
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    assert "no weights in the safetensors format. It has `pytorch_model.bin`" in refused(os.fspath(encoder))


def test_code_of_a_model_is_refused(tmp_path: Path) -> None:
    encoder = Path(write_encoder(tmp_path))
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}
    (encoder / "config.json").write_text(json.dumps(config))
    assert "It brings its own code, which txclf does not run." in refused(os.fspath(encoder))


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "has no `config.json`" in refused(os.fspath(tmp_path))
    assert "is a file" in refused(os.fspath(tmp_path / "file"))
    assert "does not exist" in refused(os.fspath(tmp_path / "missing"))
    assert "is a folder, without revisions" in refused(write_encoder(tmp_path / "encoder"), "main")
