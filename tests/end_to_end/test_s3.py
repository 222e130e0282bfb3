"""Data, runs, searches and bundles on an object store: a real S3 server on loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.helpers.encoders import write_encoder
from tests.helpers.runs import TINY
from tests.helpers.serving import Server
from tests.helpers.waiting import wait_until
from txclf import Classifier, pretrained
from txclf.artifacts import checkpoints, metric_logger
from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError
from txclf.data import sources, writers
from txclf.data.writers import Chunk

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def requests_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file to which the server writes a line per request."""
    return tmp_path_factory.mktemp("server") / "requests.log"


@pytest.fixture(scope="module")
def server(requests_log: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a process that reaches the server, which has a bucket `bucket`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with requests_log.open("w") as log:
        command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, process)
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(server: dict[str, str], data: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the data are; emptied before each test."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for known in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=known["Key"])
    client.upload_file(data, "bucket", "train.csv")
    return "s3://bucket"


def txclf(folder: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(BIN / "txclf"), *words], check=False, capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def run_file(folder: Path, text: str = "name: mine\n") -> str:
    (folder / "mine.yaml").write_text(text)
    return "mine.yaml"


def test_storage_on_s3_reads_writes_and_removes(bucket: str) -> None:
    storage.write_json(f"{bucket}/a/b/c.json", {"x": 1})
    assert storage.read_json(f"{bucket}/a/b/c.json") == {"x": 1}
    assert storage.list_folder(f"{bucket}/a") == ["b"]
    assert storage.list_folder(f"{bucket}/none") == []
    assert storage.exists(f"{bucket}/a/b")
    storage.remove_folder(f"{bucket}/a/b")
    assert not storage.exists(f"{bucket}/a/b/c.json")
    storage.write_bytes(f"{bucket}/a b/c d.csv", b"text,label\n")
    (source,) = sources.find_sources([f"{bucket}/a b"])
    assert source.path == f"{bucket}/a b/c%20d.csv"
    assert storage.read_bytes(source.path) == storage.read_bytes(f"{bucket}/a%20b/c d.csv") == b"text,label\n"
    storage.write_bytes(f"{bucket}/ä", b"x")
    assert storage.read_bytes(f"{bucket}/ä") == b"x"
    with pytest.raises(StorageError, match=r"`s3://bucket/none\.json`: cannot be read"):
        storage.read_bytes(f"{bucket}/none.json")


def test_find_sources_leave_out_a_folder_that_no_path_names(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/runs/prepared/part.csv", b"text,label\n")
    for path in (bucket, f"{bucket}/**/*.csv"):
        found = sources.find_sources([path], without=f"{bucket}/runs")
        assert [source.path for source in found] == [f"{bucket}/train.csv"]
    (named,) = sources.find_sources([f"{bucket}/runs"], without=f"{bucket}/runs")
    assert named.path == f"{bucket}/runs/prepared/part.csv"


def test_write_bytes_uploads_large_content_in_parts(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/large", bytes(25 * 2**20))
    assert boto3.client("s3").head_object(Bucket="bucket", Key="large", PartNumber=1)["PartsCount"] == 3


@pytest.mark.parametrize("large", [False, True])
def test_output_above_the_copy_limit_is_uploaded_in_parts(
    bucket: str, monkeypatch: pytest.MonkeyPatch, requests_log: Path, large: bool
) -> None:
    monkeypatch.setattr(writers, "COPY_BYTES", 2**24 if large else 2**30)
    chunks = [f"{bucket}/parts/{number}" for number in range(3)]
    for number, chunk in enumerate(chunks):
        storage.write_bytes(chunk, bytes([97 + number]) * (8 * 2**20) + b"\n")
    before = requests_log.read_text()
    writers.join([Chunk(chunk, "in.csv") for chunk in chunks], f"{bucket}/out/out.csv", "csv", None, ["text"])
    requests = requests_log.read_text().removeprefix(before)
    assert requests.count("PUT /bucket/out/out.csv HTTP") == (0 if large else 1)  # a copy by the server
    assert requests.count("PUT /bucket/out/out.csv?") == (3 if large else 0)  # parts of 10 MB
    assert storage.list_folder(f"{bucket}/out") == ["out.csv"]
    expected = b"text\n" + b"".join(storage.read_bytes(chunk) for chunk in chunks)
    assert storage.read_bytes(f"{bucket}/out/out.csv") == expected


def test_output_of_a_failed_join_leaves_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "COPY_BYTES", 0)
    storage.write_bytes(f"{bucket}/parts/0", b"a\n")
    chunks = [Chunk(f"{bucket}/parts/{number}", "in.csv") for number in (0, 1)]
    with pytest.raises(StorageError, match=r"out\.csv`: cannot be written"):
        writers.join(chunks, f"{bucket}/out/out.csv", "csv", None, ["text"])
    assert storage.list_folder(f"{bucket}/out") == []


def test_train_killed_between_validations_keeps_the_log_of_its_checkpoint(bucket: str, tmp_path: Path) -> None:
    words = [*TINY, f"storage={bucket}/runs", f"data.train={bucket}/train.csv", "train.checkpoint_every=7"]
    command = [str(BIN / "txclf"), "train", run_file(tmp_path), *words, "train.epochs=40", "train.batch_size=2"]
    folder = f"{bucket}/runs/mine"
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.DEVNULL)

    def saved() -> list[checkpoints.Checkpoint]:
        return checkpoints.committed(f"{folder}/checkpoints")

    def is_between_validations() -> bool:
        try:
            return bool(saved()) and saved()[-1].step >= 14
        except StorageError:  # the run removed a checkpoint that was just read
            return False

    try:
        wait_until(is_between_validations, process)
    finally:
        process.kill()
        process.wait()
    last, log = saved()[-1].step, metric_logger.read(f"{folder}/metrics.jsonl")
    assert not any("valid_loss" in line for line in log)
    assert [line["step"] for line in log][:last] == list(range(1, last + 1))


def test_all_commands_on_s3(bucket: str, tmp_path: Path) -> None:
    words = [run_file(tmp_path), *TINY, f"storage={bucket}/runs", f"data.train={bucket}/train.csv"]
    assert f"pass  storage: `{bucket}/runs` is read and written by 1 node(s)" in txclf(tmp_path, "check", *words)
    assert f"model:      {bucket}/runs/mine/model" in txclf(tmp_path, "train", *words)
    txclf(tmp_path, "evaluate", f"{bucket}/runs/mine", "--data", f"{bucket}/train.csv")
    txclf(tmp_path, "predict", f"{bucket}/runs/mine/model", f"{bucket}/train.csv", "--out", f"{bucket}/out.csv")
    assert storage.read_bytes(f"{bucket}/out.csv").count(b"\n") == 301
    assert Classifier.load(f"{bucket}/runs/mine/model")(["a good film"])[0].label in ("neg", "pos")
    assert not list(tmp_path.glob("runs*"))
    # Look like a run that was killed before its end: it resumes from its last checkpoint.
    storage.remove_file(f"{bucket}/runs/mine/summary.json")
    storage.remove_folder(f"{bucket}/runs/mine/model")
    assert f"model:      {bucket}/runs/mine/model" in txclf(tmp_path, "train", *words, "--resume")
    assert storage.exists(f"{bucket}/runs/mine/model/model.safetensors")
    assert storage.exists(f"{bucket}/runs/mine/summary.json")


def test_pretrained_model_on_s3_is_checked_and_stored(bucket: str, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    for file in Path(encoder).iterdir():
        storage.copy_file(file, f"{bucket}/encoder/{file.name}")
    with pretrained.located(f"{bucket}/encoder", weights=False) as found:
        assert sorted(path.name for path in Path(found.folder).iterdir()) == [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    with pretrained.located(f"{bucket}/encoder") as found:
        folder = pretrained.stored(found, f"{bucket}/encoder", f"{bucket}/runs")
    assert folder.startswith(f"{bucket}/runs/pretrained/")
    with pretrained.local_copy(folder, weights=True) as copy:
        assert storage.sha256(f"{copy}/model.safetensors") == storage.sha256(f"{encoder}/model.safetensors")
    storage.remove_file(f"{bucket}/encoder/model.safetensors")
    with (
        pytest.raises(ConfigError, match="no weights in the safetensors format"),
        pretrained.located(f"{bucket}/encoder", weights=False),
    ):
        pass


def test_missing_bucket_raises(bucket: str, tmp_path: Path) -> None:
    words = [run_file(tmp_path), *TINY, "storage=s3://none/runs", f"data.train={bucket}/train.csv"]
    assert "`s3://none/runs/mine/.probe-" in txclf(tmp_path, "train", *words, code=2)
    words = [run_file(tmp_path), *TINY, f"storage={bucket}/runs", f"data.train={bucket}/none.csv"]
    assert f"`{bucket}/none.csv`: no such file" in txclf(tmp_path, "train", *words, code=2)


@pytest.mark.faults
def test_workers_and_searches_on_s3(bucket: str, tmp_path: Path) -> None:
    words = [*TINY, f"storage={bucket}/runs", f"data.train={bucket}/train.csv"]
    txclf(tmp_path, "train", run_file(tmp_path), *words, "compute.workers=2")
    assert Classifier.load(f"{bucket}/runs/mine/model")
    text = "name: search\ntune: {trials: 3, space: {train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}\n"
    txclf(tmp_path, "tune", run_file(tmp_path, text), *words)
    assert Classifier.load(f"{bucket}/runs/search/model")
    txclf(tmp_path, "tune", run_file(tmp_path, text), *words, "--extend", "1")
    assert storage.read_json(f"{bucket}/runs/search/search.json")["trials"] == 4


@pytest.mark.faults
def test_bundle_on_s3_is_inspected_predicted_and_served(bucket: str, tmp_path: Path) -> None:
    words = [*TINY, f"storage={bucket}/runs", f"data.train={bucket}/train.csv"]
    txclf(tmp_path, "train", run_file(tmp_path), *words)
    model = f"{bucket}/runs/mine/model"
    assert storage.read_bytes(f"{bucket}/runs/mine/report.html").startswith(b"<!doctype html>")
    assert f"report: {bucket}/page.html" in txclf(
        tmp_path, "report", f"{bucket}/runs/mine", "--out", f"{bucket}/page.html"
    )
    assert "run: " in txclf(tmp_path, "inspect", f"{bucket}/runs/mine")
    for out, more in (("here", []), ("there", ["--workers", "2"])):
        given = [model, f"{bucket}/train.csv", "--out", f"{bucket}/{out}.jsonl", "--chunk-rows", "50"]
        assert "300 rows, " in txclf(tmp_path, "predict", *given, *more)
    assert storage.read_bytes(f"{bucket}/there.jsonl") == storage.read_bytes(f"{bucket}/here.jsonl")
    for replicas in "0", "1":
        server = Server(model, "--replicas", replicas)
        try:
            status, content = server.ask("/predict", {"text": "a good film"})
        finally:
            assert server.end(signal.SIGINT)[0] == 0
        assert status == 200
        assert content["predictions"][0]["label"] in ("neg", "pos")
