"""Which rows are trusted after a server that flushed them now and then (the level interval) died.

If only the process died, all of its rows are there. If the machine lost its power, rows that were not flushed may be missing. The boot id
does not tell the one case from the other for certain (ADR 8). So the inserts that were not flushed are compared with their digests, and the
rows end before the first one that differs.
"""

from __future__ import annotations

from dataclasses import replace

from tdreplay.schema import Schema
from tdreplay_server.durability.ledger import digest_of
from tdreplay_server.storage.ring import Ring, slot_ranges
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.system.logs import log

__all__ = ["digest_of_rows", "trusted"]


def trusted(ring: Ring, unflushed: tuple[tuple[int, int, int], ...], storage: RowStorage, schema: Schema) -> Ring:
    """`ring` without the rows that are not what was written.

    Args:
        ring: The live rows, as the journal says.
        unflushed: (first row id, rows, digest) of the inserts that may be lost, by ascending id.
        storage: Where the rows lie.
        schema: The schema of the rows.
    """
    for first, rows, digest in unflushed:
        if first < ring.oldest < first + rows:  # A part of an insert cannot be compared.
            ring = replace(ring, oldest=first + rows)
        elif first >= ring.oldest and digest_of_rows(storage, schema, first, rows) != digest:
            log.warning("rows were lost with the power", first_row_id=first, rows=ring.write_count - first)
            return replace(ring, oldest=min(ring.oldest, first), write_count=first)
    return ring


def digest_of_rows(storage: RowStorage, schema: Schema, first: int, rows: int) -> int:
    """The digest of the rows ``[first, first + rows)`` as they are stored; they fit into the ring."""
    ranges = slot_ranges(first, rows, storage.buffer_size)
    return digest_of({field.name: [storage.rows(*part, field.name) for part in ranges] for field in schema.stored_fields if field.row_bytes})
