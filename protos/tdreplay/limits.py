"""The limits of the wire and other values that both ends share, and checks of arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from tdreplay.errors import InvalidArgumentError

__all__ = [
    "BLOCK_BYTES",
    "DEFAULT_TABLE",
    "DEFAULT_TIMEOUT",
    "LEAST_SHARED_BYTES",
    "MAX_BATCH_SIZE",
    "MAX_EPOCH_IDS",
    "MAX_FIELD_NAMES",
    "MAX_HEADER_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_INT64",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME_LENGTH",
    "MAX_RANK",
    "MAX_ROW_ID",
    "MAX_SECONDS",
    "MAX_SHARDS",
    "MAX_WRITER_ID",
    "MOST_PLACED_BYTES",
    "MOST_PLACED_SLOTS",
    "MOST_SHARED_BYTES",
    "SEGMENTS_START",
    "SEQUENCE_WINDOW",
    "SHARED_BLOCK_BYTES",
    "check_batch_size",
    "check_choice",
    "check_flag",
    "check_number",
    "check_seconds",
    "check_whole",
    "message_options",
    "shown",
]

DEFAULT_TABLE = "default"
"""The table that a call means if it names none."""

DEFAULT_TIMEOUT = 30.0
"""Seconds that a call waits unless the user says otherwise."""

MAX_MESSAGE_BYTES = 64 << 20
"""The largest message, and so the largest row, in bytes."""

BLOCK_BYTES = 2 << 20
"""The bytes that a block should have if a batch needs several. gRPC streams move messages of this size fastest (measured from 256 KiB to 3 MiB)."""

MAX_HEADER_BYTES = 64 << 10
"""The largest safetensors header, in bytes. 900 fields of 8 dimensions fit."""

MAX_HEAD_BYTES = 128 << 10
"""The most bytes of a message without its block or its packed index. The names of all fields of any table fit."""

MAX_FIELD_NAMES = 2048
"""The most names in a request's `fields`. No table has that many fields."""

MAX_NAME_LENGTH = 256
"""The most characters of a field's name."""

MAX_RANK = 16
"""The most dimensions that a field of a block may have, the row dimension included."""

MAX_BATCH_SIZE = 1 << 20
"""The most rows in one sampled batch, and the most slots in one call."""

MAX_EPOCH_IDS = 1 << 13
"""The most row ids in one request for rows of an epoch. They are half of `MAX_HEAD_BYTES`."""

SEGMENTS_START = 4096
"""The byte of the file of shared memory at which its first segment starts. The page before it begins with the nonce."""

SHARED_BLOCK_BYTES = 4 << 20
"""The bytes that a block of a large insert should have in shared memory: twice as many as in a message, because only the number of blocks costs."""

LEAST_SHARED_BYTES = 256 << 10
"""Smaller blocks, in bytes, travel in messages. They are faster there, because one message carries several."""

MOST_SHARED_BYTES = 64 << 20
"""The most bytes of shared memory for one stream: of all its segments together."""

MOST_PLACED_BYTES = 128 << 20
"""The most bytes of a client's memory for whole batches, to which servers write: of all its segments together."""

MOST_PLACED_SLOTS = 64
"""The most segments of such memory."""

MAX_INT64 = (1 << 63) - 1
"""The largest number in a message."""

MAX_ROW_ID = 1 << 62
"""The largest row id. Far from where 64 bits end: at a million rows a second a table reaches it after 146,000 years."""

MAX_SHARDS = 1 << 14
"""The most shards of a cluster, with the removed ones: their numbers are 0 to 16383. No number is given twice."""

SEQUENCE_WINDOW = 64
"""Sequence numbers remembered per writer: the highest ones. A writer has fewer unacknowledged inserts than that at any time."""

MAX_WRITER_ID = 64
"""The longest writer id, in characters."""

MAX_SECONDS = 365 * 86400.0
"""The longest wait, in seconds: a year. It stands for ever, and timers of 64 bits take it."""


def message_options() -> list[tuple[str, int]]:
    """The gRPC options with which either end takes and sends messages of up to `MAX_MESSAGE_BYTES`."""
    return [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]


def check_batch_size(batch_size: SupportsIndex, name: str = "batch_size") -> int:
    """`batch_size` as an int. It must be a whole number from 1 to `MAX_BATCH_SIZE`.

    Raises:
        InvalidArgumentError: it is not; the message says the value and the rule.
    """
    return check_whole(batch_size, name, 1, MAX_BATCH_SIZE)


def check_whole(value: SupportsIndex, name: str, least: int, most: int = MAX_INT64) -> int:
    """`value` as an int. It must be a whole number from `least` to `most`: Python's, NumPy's or torch's, but not a bool.

    Raises:
        InvalidArgumentError: it is not; the message says the value and the rule.
    """
    whole = value if type(value) is int else None if _of_kind(value, "bool") else _index(value)
    if whole is None or not least <= whole <= most:
        upper = f" to {most}" if most < MAX_INT64 or (whole or 0) > most else " up"
        raise InvalidArgumentError(f"{name} ({shown(value)}) must be a whole number from {least}{upper}")
    return whole


def check_seconds(value: SupportsFloat | None, name: str) -> float:
    """`value` as a float. It must be a number above 0. None, inf and longer times stand for `MAX_SECONDS`.

    Raises:
        InvalidArgumentError: it is not; the message says the value and the rule.
    """
    seconds = math.inf if value is None else math.nan if _of_kind(value, "bool", "complex") else _float(value)
    if not seconds > 0:
        raise InvalidArgumentError(f"{name} ({shown(value)}) must be a number of seconds above 0, or None for no limit")
    return min(seconds, MAX_SECONDS)


def check_number(value: SupportsFloat, name: str, least: float, most: float = math.inf) -> float:
    """`value` as a float. It must be a finite number from `least` to `most`: Python's, NumPy's or torch's, but not a bool.

    Raises:
        InvalidArgumentError: it is not; the message says the value and the rule.
    """
    number = math.nan if _of_kind(value, "bool", "complex") else _float(value)
    if not (math.isfinite(number) and least <= number <= most):
        upper = f" to {most:g}" if most < math.inf else " up"
        raise InvalidArgumentError(f"{name} ({shown(value)}) must be a finite number from {least:g}{upper}")
    return number


def check_choice(value: str, name: str, choices: Collection[str]) -> str:
    """`value`, which must be one of `choices`.

    Raises:
        InvalidArgumentError: it is none of them.
    """
    if value not in choices:
        raise InvalidArgumentError(f"{name} ({value!r}) must be one of {sorted(choices)}")
    return value


def check_flag(value: object, name: str) -> bool:
    """`value` as a bool. It must be True or False: Python's, NumPy's or torch's.

    Raises:
        InvalidArgumentError: it is not; the message says the value and the rule.
    """
    if type(value) is bool:
        return value
    if not _of_kind(value, "bool") or getattr(value, "ndim", 0) != 0:
        raise InvalidArgumentError(f"{name} ({shown(value)}) must be True or False")
    return bool(value)


def shown(value: object, most: int = 80) -> str:
    """`value` as an error shows it: its repr, cut to `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits.
        text = f"{type(value).__name__} of too many digits"
    except RecursionError:
        text = f"{type(value).__name__} of too many levels"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _of_kind(value: object, *kinds: str) -> bool:
    """Whether `value` is of one of these kinds, in Python, NumPy or torch. It reads names, so that this module imports neither."""
    of = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    return any(of.startswith(kind) for kind in kinds)


def _index(value: SupportsIndex) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor without memory.
        return None


def _float(value: SupportsFloat) -> float:
    """The value as a float; NaN if it is no number."""
    try:
        return float(value) if hasattr(value, "__float__") and not getattr(value, "ndim", 0) else math.nan
    except OverflowError:
        return math.inf if value > 0 else math.nan  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):
        return math.nan
