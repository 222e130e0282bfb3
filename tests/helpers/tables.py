"""Tables in memory of no known package."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


class Stream:
    """Object that has nothing but the Arrow stream interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)
