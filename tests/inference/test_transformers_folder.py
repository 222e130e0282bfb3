"""The Transformers side of a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.encoders import ALL, write_encoder
from txclf.config.sections import Model
from txclf.inference import transformers_folder
from txclf.model.pretrained import PretrainedClassifier, read_config


@pytest.mark.parametrize("architecture", ALL)
def test_temperature_is_in_the_last_layer(tmp_path: Path, architecture: str) -> None:
    encoder = write_encoder(tmp_path, architecture)
    settings = Model(pretrained=encoder)
    config = read_config(encoder, settings, labels=["a", "b", "c"], is_multilabel=False, pad=1)
    model = PretrainedClassifier.load(encoder, config, settings).eval()
    files = transformers_folder.files(encoder, config, 16)
    weights = transformers_folder.exported(model.state_dict(), files, 2.0)
    other = transformers_folder.network(files).eval()
    other.load_state_dict(transformers_folder.imported(weights))
    ids = torch.arange(10, 20)[None]
    torch.testing.assert_close(other(ids) * 2.0, model(ids))
    assert json.loads(files["config.json"])["id2label"] == {"0": "a", "1": "b", "2": "c"}
