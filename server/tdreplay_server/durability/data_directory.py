"""What lies where in a server's data directory: ``tables/NAME`` holds a table, ``checkpoints/NAME`` its checkpoints."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINTS", "TABLES", "table_directory"]

TABLES = "tables"
"""The directory of all tables, in a data directory."""
CHECKPOINTS = "checkpoints"
"""The directory for checkpoints, in a data directory, or in that of a table that no server owns."""


def table_directory(data_dir: Path, name: str) -> Path:
    """Where a table lies in a data directory."""
    return data_dir / TABLES / name
