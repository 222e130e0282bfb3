"""Errors that a user can fix."""

from __future__ import annotations

import pytest

from txclf.core import errors


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "BundleError", "StorageError", "ClusterError"])
def test_error_is_a_txclf_error_with_exit_code_2(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.TxclfError)
    assert kind.exit_code == 2
    assert str(kind("`a.csv`: is empty.")) == "`a.csv`: is empty."
