"""Where pretrained models come from, and which are refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

import txclf
from tests.helpers.encoders import as_sentence_encoder, write_encoder
from tests.helpers.hub import Hub, served
from tests.helpers.runs import TINY
from txclf import pretrained
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.training.progress import Interrupted


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


def test_processes_that_store_at_once_leave_one_whole_copy(tmp_path: Path) -> None:
    encoder, root = write_encoder(tmp_path / "encoder"), os.fspath(tmp_path / "runs")
    barrier = Barrier(4)

    def store(_: int) -> str:
        with pretrained.located(encoder) as found:
            barrier.wait()
            return pretrained.stored(found, encoder, root)

    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(store, range(4)))
    names = sorted({*os.listdir(encoder), "source.json"})
    assert sorted(os.listdir(folder)) == names
    for name in os.listdir(encoder):
        assert storage.sha256(f"{folder}/{name}") == storage.sha256(f"{encoder}/{name}")


def test_copy_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    encoder, root = write_encoder(tmp_path / "encoder"), os.fspath(tmp_path / "runs")
    with pretrained.located(encoder) as found:
        folder = pretrained.stored(found, encoder, root)
        os.truncate(f"{folder}/model.safetensors", 100)
        os.unlink(f"{folder}/source.json")  # it is written last
        assert pretrained.stored(found, encoder, root) == folder
    assert storage.sha256(f"{folder}/model.safetensors") == storage.sha256(f"{encoder}/model.safetensors")


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


def test_configuration_that_is_not_one_is_refused(tmp_path: Path) -> None:
    path = Path(write_encoder(tmp_path)) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "model_type"}))
    assert "config.json` names no `model_type`" in refused(os.fspath(tmp_path))
    path.write_text("{")
    assert "config.json` is not valid JSON" in refused(os.fspath(tmp_path))
    path.write_text(json.dumps({"model_type": "new"}))
    assert "Install a version of Transformers that knows it" in refused(os.fspath(tmp_path))
    for model_type in ("vit", "bart"):
        path.write_text(json.dumps({"model_type": model_type, "is_encoder_decoder": model_type == "bart"}))
        assert f"is a model of the type `{model_type}`, which does not classify texts" in refused(os.fspath(tmp_path))


def test_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "is an adapter. Merge it" in refused(os.fspath(tmp_path))


def test_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it was not installed
    assert "Run `pip install 'txclf[pretrained]'`" in refused(encoder)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "has no `config.json`" in refused(os.fspath(tmp_path))
    assert "is a file" in refused(os.fspath(tmp_path / "file"))
    assert "does not exist" in refused(os.fspath(tmp_path / "missing"))
    assert "is a folder, without revisions" in refused(write_encoder(tmp_path / "encoder"), "main")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a hub with the model `org/tiny`."""
    with served(monkeypatch, tmp_path / "cache") as found:
        found.push("main", write_encoder(tmp_path / "first"))
        yield found


def commit_of(name: str, revision: str | None = None) -> str | None:
    """Return the commit of a model of the hub."""
    with pretrained.located(name, revision) as found:
        assert "model.safetensors" in os.listdir(found.folder)
        return found.commit


def test_revisions_of_the_hub_are_resolved_to_commits(tmp_path: Path, hub: Hub) -> None:
    first = hub.names["main"]
    hub.names["v1"] = first
    (tmp_path / "first" / "pytorch_model.bin").write_bytes(b"pickle")
    second = hub.push("main", write_encoder(tmp_path / "second", "roberta"))
    commits = [commit_of("org/tiny", revision) for revision in (None, "main", "v1", first)]
    assert commits == [second, second, first, first]
    assert not any(".bin" in path for path in hub.requests)


def test_pooling_of_a_sentence_encoder_is_read_and_stored(tmp_path: Path, hub: Hub) -> None:
    encoder = as_sentence_encoder(write_encoder(tmp_path / "second"))
    (tmp_path / "second" / "onnx").mkdir()
    (tmp_path / "second" / "onnx" / "config.json").write_text("{}")
    hub.push("main", encoder)
    for name in (encoder, f"file://{encoder}", "org/tiny"):
        with pretrained.located(name) as found:
            stored = pretrained.stored(found, name, os.fspath(tmp_path / "runs"))
        for folder in (stored, f"file://{stored}"):
            with pretrained.local_copy(folder, weights=False) as copy:
                assert storage.read_json(f"{copy}/{pretrained.POOLING}")["pooling_mode_mean_tokens"] is True
    assert len(os.listdir(tmp_path / "runs/pretrained")) == 1
    assert not any("onnx" in path for path in hub.requests)


def test_offline_hub_gives_what_is_cached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = commit_of("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert commit_of("org/tiny") == commit_of("org/tiny", commit) == commit
    assert "not whole in the cache of the hub, which alone is read while `HF_HUB_OFFLINE`" in refused("org/other")
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/other", None, "`org/other` is no folder here, and the hub has no such model, or it is private."),
        ("org/gated", None, "`org/gated` is no folder here, and gated on the hub. Accept its terms there"),
        ("org/broken", None, "`org/broken` is no folder here, and the hub did not give it: Server error '500"),
        ("org/tiny", "v9", "`model.revision`: `org/tiny` has no revision `v9` on the hub."),
    ],
)
def test_error_of_the_hub_is_explained(hub: Hub, name: str, revision: str | None, message: str) -> None:
    assert message in refused(name, revision)


def test_unreachable_hub_is_refused_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = commit_of("org/tiny")
    with socket.socket() as closed:  # bound, but nothing listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        assert "and the hub did not give it: [Errno 111] Connection refused." in refused("org/other")
        assert commit_of("org/tiny") == commit  # from the cache
        assert time.monotonic() - start < 5


def test_run_keeps_the_commit_it_began_with(tmp_path: Path, data: str, hub: Hub) -> None:
    settings = {
        "name": "tuned",
        "storage": os.fspath(tmp_path / "runs"),
        "data": {"train": data},
        "tokenizer": {"max_length": 16},
        "model": {"pretrained": "org/tiny"},
        "train": {"epochs": 2, "precision": "fp32"},
    }
    first = hub.names["main"]
    with pytest.raises(Interrupted):
        txclf.train(settings, on_progress=lambda progress: progress.step >= 5)
    hub.push("main", write_encoder(tmp_path / "second", hidden_size=16))
    hub.requests.clear()
    txclf.train(settings, resume=True)
    saved = run_config.load(f"{tmp_path}/runs/tuned/run.yaml")
    assert (saved.model.pretrained, saved.model.revision, saved.model.hidden_size) == ("org/tiny", first, 32)
    assert not hub.requests
    txclf.train(run_config.with_overrides(saved, {"name": "again", "train.epochs": 1}))
    assert run_config.load(f"{tmp_path}/runs/again/run.yaml").model.revision == first


def test_commands_from_scratch_import_no_transformers(tmp_path: Path, data: str) -> None:
    words = [*TINY, f"data.train={data}", f"data.test={data}", f"storage={tmp_path}", "name=scratch", "train.epochs=1"]
    code = f"""
import sys
import txclf
from txclf.cli import main
from txclf.tuning import tune, trainable
run = txclf.load_config(None, {words!r})
txclf.train(run)
txclf.evaluate(run.run_folder)
txclf.predict(run.run_folder + "/model", [{data!r}], out={os.fspath(tmp_path / "out.csv")!r})
assert "torchmetrics" in sys.modules
print([name for name in sys.modules if name.partition(".")[0] in ("transformers", "huggingface_hub")])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
