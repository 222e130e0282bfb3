"""Errors that a user can fix.

    TxclfError            exit code 2, one message, no traceback
    ├── ConfigError       the run file, an override or an option
    ├── DataError         a data file, a row, a column, a label
    ├── BundleError       a model bundle
    ├── StorageError      a folder or URI that cannot be read or written
    └── ClusterError      resources that Ray cannot provide

Any other exception is a defect of txclf and shows its traceback.
"""

from __future__ import annotations

from txclf.core import text


class TxclfError(Exception):
    """Base class of the errors that a user can fix. The message names the cause and the fix.

    Messages hold values of files, so they are shortened and escaped here, at one place for all of them.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(text.message(str(message)))


class ConfigError(TxclfError):
    """Unknown or invalid setting."""


class DataError(TxclfError):
    """Missing, damaged or unsuitable input data."""


class BundleError(TxclfError):
    """Folder that is no model bundle which this version can load."""


class StorageError(TxclfError):
    """Storage path that cannot be read or written."""


class ClusterError(TxclfError):
    """Resources or a cluster that Ray cannot provide."""
