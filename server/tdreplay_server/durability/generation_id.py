"""The id of the rows of a table: whoever remembers row ids remembers it as well, and finds out that they are others now."""

from __future__ import annotations

import secrets

__all__ = ["new_generation_id"]


def new_generation_id() -> str:
    """An id for the rows of a table from now on: 16 hexadecimal digits, by chance. A reset, a rewind and a loss of rows need another one."""
    return secrets.token_hex(8)
