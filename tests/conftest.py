"""Fixtures of several test files."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# One thread each, before torch is imported: the models of the tests are tiny, and on a small machine more threads only
# wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# In the background of a shell script Python ignores Ctrl-C, and so would all processes that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

from tests.helpers import multilabel
from tests.helpers.files import make_rows, write_csv
from tests.helpers.pairs import write_pairs
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.model.classifier import TransformerClassifier


@pytest.fixture(scope="session")
def tiny_run() -> RunConfig:
    """Return the smallest useful run."""
    return run_config.parse(
        {
            "name": "tiny",
            "tokenizer": {"vocab_size": 300, "max_length": 16},
            "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
        }
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_run: RunConfig) -> str:
    """Return the bundle of an untrained model with the labels `low`, `mid` and `high`; copy it to change it."""
    folder = str(tmp_path_factory.mktemp("tiny") / "model")
    texts = ["the quick brown fox jumps over the lazy dog", "five boxing wizards jump quickly"] * 4
    tokenizer = train_tokenizer(tiny_run.tokenizer, texts)
    torch.manual_seed(0)
    model = TransformerClassifier(tiny_run.model, tokenizer.get_vocab_size(), 3, tiny_run.tokenizer.max_length)
    labels, metrics, rows = ["low", "mid", "high"], {"valid_loss": 1.25}, {"train": 1234, "valid": 56}
    bundle.save(
        folder, tiny_run, model.state_dict(), labels=labels, tokenizers=[tokenizer.to_str()], metrics=metrics, rows=rows
    )
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv file of 300 rows whose label can be learned."""
    rows = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(300)]
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", rows)


@pytest.fixture(scope="module")
def tag_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return files of training and test rows with several labels each."""
    folder = tmp_path_factory.mktemp("tags")
    return multilabel.write_lines(folder / "train.jsonl", multilabel.make(600, 0)), multilabel.write_lines(
        folder / "test.jsonl", multilabel.make(200, 1)
    )


@pytest.fixture(scope="module")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of pairs of texts whose target can be learned."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Start one local Ray of three logical CPUs for a whole file, as a run starts its own."""
    from txclf import ray_cluster
    from txclf.launch import local_workers
    from txclf.upstream import local_ray

    with local_workers.forked(Compute(workers=1)):
        yield from _ray(ray_cluster.LOCAL_SETTINGS, local_ray.init)


@pytest.fixture(scope="module")
def cluster_ray() -> Iterator[None]:
    """Start a Ray like `local_ray`, on which a run has all of Ray Train's actors, as on a cluster."""
    import ray

    from txclf import ray_cluster

    # As the files in cluster/ do: otherwise each reading task starts a process, if workers take all CPUs.
    kept = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}
    yield from _ray({**ray_cluster.CLUSTER_SETTINGS, **kept}, ray.init)


def _ray(settings: dict[str, str], init: Callable[..., Any]) -> Iterator[None]:
    import ray

    from txclf import ray_cluster

    with ray_cluster.environment({**ray_cluster.SETTINGS, **settings}):
        terminate = signal.getsignal(signal.SIGTERM)
        init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        signal.signal(signal.SIGTERM, terminate)  # Ray's would fail the test that runs, and go on with the next
        yield
        with warnings.catch_warnings():  # it waits a second for each process, which a busy machine may exceed
            warnings.filterwarnings("ignore", "subprocess .* is still running", ResourceWarning)
            ray.shutdown()
            gc.collect()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that takes a line to print after all tests, for the tables of the docs."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measured figures."""
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(str(line))
