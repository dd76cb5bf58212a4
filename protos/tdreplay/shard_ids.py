"""Row ids over several shards: each says which shard has the row.

The upper bits of the 62 of a row id are the number of the shard, and the lower ones the id that the shard itself gave. Shard 0 has the same ids as a
buffer that is no shard.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.errors import RowIdError

__all__ = ["SHARD_ROW_BITS", "local_row_ids", "shard_numbers", "sharded_row_ids"]

SHARD_ROW_BITS = 48
"""The bits of a shard's own row ids: at a million rows a second they last nine years."""

RowIds = npt.NDArray[np.int64]


def sharded_row_ids(row_ids: Any, shard: int) -> Any:
    """The row ids that a shard gave, with its number in them. An array or a tensor of int64, or a number; a new one.

    Raises:
        RowIdError: the shard gave an id that has no room: it inserted 2^48 rows.
    """
    if shard and np.size(row_ids) and int(row_ids.max() if hasattr(row_ids, "max") else row_ids) >> SHARD_ROW_BITS:
        raise RowIdError(f"shard {shard} gave more row ids than fit: 2^{SHARD_ROW_BITS}")
    return row_ids + (shard << SHARD_ROW_BITS)


def shard_numbers(row_ids: RowIds) -> RowIds:
    """The number of the shard of each row."""
    return row_ids >> SHARD_ROW_BITS


def local_row_ids(row_ids: RowIds) -> RowIds:
    """The ids by which the shards know the rows."""
    return row_ids & ((1 << SHARD_ROW_BITS) - 1)
