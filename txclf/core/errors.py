"""The errors that a user can mend.

    TxclfError            exit code 2, one message, no traceback
    ├── ConfigError       the run file or a command-line word
    ├── DataError         a data file, a row, a column, a label
    ├── BundleError       a model bundle
    ├── StorageError      a folder or URI that cannot be read or written
    └── ClusterError      what was asked of Ray cannot be had

Anything else that escapes is a defect of txclf and shows its traceback.
"""


class TxclfError(Exception):
    """Base of the errors that a user can mend. The message names the thing and says what to do."""

    exit_code = 2


class ConfigError(TxclfError):
    """A setting is unknown, of the wrong type or impossible."""


class DataError(TxclfError):
    """Input data are missing, damaged or unfit."""


class BundleError(TxclfError):
    """A folder is not a model bundle that this version can load."""


class StorageError(TxclfError):
    """A storage path cannot be read or written."""


class ClusterError(TxclfError):
    """Ray cannot provide what the run asks for."""
