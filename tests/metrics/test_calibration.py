"""Temperature scaling: recovered temperatures, the minimum of the cross-entropy, the calibration error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from txclf.metrics import calibration
from txclf.metrics.calibration import LIMIT, Floats, Labels


def drawn(rows: int, classes: int, temperature: float, seed: int = 0) -> tuple[Floats, Labels]:
    """Return logits that are `temperature` times too large, and labels drawn from the true probabilities."""
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(rows, classes)) * 2
    noise = draw.gumbel(size=(rows, classes))
    return (true * temperature).astype(np.float32), (true + noise).argmax(axis=1).astype(np.int32)


def cross_entropy(logits: Floats, labels: Labels, temperature: float) -> float:
    scaled = torch.from_numpy(logits).double() / temperature
    return float(torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels.astype(np.int64))))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_known_value_is_recovered(temperature: float, classes: int) -> None:
    logits, labels = drawn(20_000, classes, temperature)
    found = calibration.temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    after = calibration.error(logits, labels, found)
    assert after < 0.02
    if temperature != 1.0:
        assert after < calibration.error(logits, labels) / 3


@pytest.mark.parametrize(("rows", "classes", "seed"), [(5, 2, 0), (40, 3, 1), (300, 7, 2), (2000, 2, 3)])
def test_temperature_minimizes_the_cross_entropy(rows: int, classes: int, seed: int) -> None:
    logits, labels = drawn(rows, classes, 2.0, seed)
    found = calibration.temperature(logits, labels)
    least = cross_entropy(logits, labels, found)
    for other in [*np.geomspace(1 / LIMIT, LIMIT, 50), found * 0.999, found * 1.001]:
        assert least < cross_entropy(logits, labels, other)


def test_temperature_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(1000, 3, 2.0)
    whole = calibration.temperature(logits, labels)
    monkeypatch.setattr(calibration, "CHUNK_LOGITS", 21)
    assert calibration.temperature(logits, labels) == pytest.approx(whole, rel=1e-9)


EDGES: dict[str, tuple[list[list[float]], list[int]]] = {
    "all right": ([[3, 0], [0, 2], [9, 1]], [0, 1, 0]),
    "all right by far": ([[3e4, 0], [0, 2e4]], [0, 1]),
    "one row, right": ([[3, 0]], [0]),
    "one row, wrong": ([[3, 0]], [1]),
    "all wrong": ([[3, 0], [0, 2]], [1, 0]),
    "no differences": ([[1, 1], [-7, -7]], [0, 1]),
    "one class": ([[1], [2]], [0, 0]),
    "no rows": (np.empty((0, 2)).tolist(), []),
}


@pytest.mark.parametrize("edge", EDGES)
def test_temperature_without_minimum_is_1(edge: str) -> None:
    logits, labels = EDGES[edge]
    shape = (len(labels), len(logits[0]) if logits else 2)
    assert calibration.temperature(np.array(logits, np.float32).reshape(shape), np.array(labels, np.int32)) == 1.0


def test_temperature_contradicting_rows_have_a_minimum() -> None:
    logits, labels = np.array([[6, 0], [6, 0], [6, 0], [6, 0]], np.float32), np.array([0, 0, 0, 1])
    found = calibration.temperature(logits, labels)
    assert 1 / (1 + np.exp(-6 / found)) == pytest.approx(0.75)
    assert calibration.error(logits, labels, found) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_error_equals_equation_3(temperature: float) -> None:
    logits, labels = drawn(500, 4, 3.0)
    raised = np.exp(logits.astype(np.float64) / temperature)
    probabilities = raised / raised.sum(axis=1, keepdims=True)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs(hit[bins == i].mean() - confidence[bins == i].mean()) * (bins == i).mean() for i in set(bins))
    assert calibration.error(logits, labels, temperature) == pytest.approx(expected, abs=1e-6)


def test_binned_error_counts_more_predictions_than_float32_can() -> None:
    confidence = np.full(2**24 + 2**23, 0.02, np.float32)
    assert calibration.binned_error(confidence, np.zeros(len(confidence), bool)) == pytest.approx(0.02)


def test_binned_error_certain_predictions_are_in_the_last_bin() -> None:
    assert calibration.binned_error(np.array([1.0, 0.95], np.float32), np.array([True, False])) == pytest.approx(0.475)


@pytest.mark.parametrize(("scale", "expected"), [(0.01, 1 / LIMIT), (-0.01, LIMIT), (0.0, 1.0)])
def test_temperature_with_smoothed_targets_is_at_the_nearer_limit(scale: float, expected: float) -> None:
    labels = np.arange(200) % 3
    logits = np.eye(3, dtype=np.float32)[labels] * np.float32(scale)
    assert calibration.temperature(logits, labels, smoothing=0.01) == expected
    assert calibration.temperature(logits, labels) == 1.0


@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.3, 7.0])
def test_tempered_losses_lowest_is_the_loss_after_calibration(temperature: float) -> None:
    logits, labels = drawn(2000, 4, temperature)
    found = calibration.tempered_losses(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)))
    fitted = calibration.temperature(logits, labels)
    assert calibration.TEMPERATURES[int(found.argmin())] == pytest.approx(fitted, rel=0.08)
    best = cross_entropy(logits, labels, fitted)
    assert best - 1e-6 <= float(found.min()) / 2000 <= 1.005 * best
    halves = [
        calibration.tempered_losses(torch.from_numpy(logits[part]), torch.from_numpy(labels[part].astype(np.int64)))
        for part in (slice(0, 700), slice(700, 2000))
    ]
    torch.testing.assert_close(halves[0] + halves[1], found, rtol=1e-5, atol=0)
