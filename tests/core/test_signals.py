"""SIGINT and SIGTERM as requests to stop."""

from __future__ import annotations

import signal

import pytest

from txclf.core.signals import STOP_SIGNALS, stop_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signals_first_signal_is_collected(number: signal.Signals) -> None:
    with stop_signals() as signals:
        assert signals.received == []
        signal.raise_signal(number)
        assert signals.received == [number]
        assert signals.exit_code == 128 + number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signals_second_signal_ends_the_process(number: signal.Signals) -> None:
    with stop_signals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert signals.exit_code == 128 + signal.SIGINT


def test_stop_signals_without_collecting_first_signal_ends_the_process() -> None:
    with pytest.raises(SystemExit) as ended, stop_signals(max_collected=0):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_stop_signals_after_an_error_restores_the_earlier_handlers() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in STOP_SIGNALS]

    def fail() -> None:
        with stop_signals():
            assert handlers() != earlier
            raise KeyError

    earlier = handlers()
    with pytest.raises(KeyError):
        fail()
    assert handlers() == earlier


def test_collect_all_never_ends_the_process() -> None:
    with stop_signals(max_collected=0) as signals:
        signals.collect_all()
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert signals.received == [signal.SIGINT] * 3


def test_collect_all_after_a_signal_ends_the_process() -> None:
    with stop_signals(max_collected=0) as signals:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            signals.collect_all()
    assert ended.value.code == 143
