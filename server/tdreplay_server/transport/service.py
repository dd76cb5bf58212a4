"""The handlers of ``replay_buffer.proto``: each decodes, acts on a table, and encodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tdreplay.block import Block, Bytes, checked_places, decode
from tdreplay.description_messages import description_to_message
from tdreplay.epoch_messages import epoch_query_from_message, place_from_message, plan_from_message
from tdreplay.errors import FieldNotFoundError, InvalidArgumentError, SchemaError, TableChangedError, TableNotFoundError
from tdreplay.limits import MAX_BATCH_SIZE, MAX_FIELD_NAMES, check_batch_size, check_choice, check_number, check_whole, shown
from tdreplay.memory import Rows
from tdreplay.messages import durability_to_message
from tdreplay.priorities import checked_priorities
from tdreplay.samplers import Uniform
from tdreplay.schema import Schema
from tdreplay.server_status_messages import server_status_to_message
from tdreplay.system_fields import PRIORITY
from tdreplay.table_messages import table_request_from_message
from tdreplay.trajectory_messages import episode_to_message
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.window_messages import window_query_from_message
from tdreplay.windows import WindowQuery
from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.system.disk import check_name
from tdreplay_server.tables.draws import generators_of
from tdreplay_server.tables.leases import Drawn, SentBatches
from tdreplay_server.tables.limiters import Wait
from tdreplay_server.tables.registry import Tables
from tdreplay_server.tables.selection import BatchQuery, RowFormat
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.call_writers import CallWriters
from tdreplay_server.transport.checkpoint_progress import checkpointed
from tdreplay_server.transport.credits import Credits
from tdreplay_server.transport.encoding import Outgoing, batches_per_message, messages, streamed
from tdreplay_server.transport.epoch_rows import epoch_rows
from tdreplay_server.transport.epoch_stream import EpochStream
from tdreplay_server.transport.placed_rows import PlacedRows, placed_rows
from tdreplay_server.transport.request_limits import check_block, check_rows
from tdreplay_server.transport.sample_call import DrawBatches, SampleCall, draw_head, read_ahead, updated
from tdreplay_server.transport.server_limits import ServerLimits
from tdreplay_server.transport.server_state import ServerState
from tdreplay_server.transport.shared_memory import Segments, SharedMemory, offer

__all__ = ["ReplayBufferService"]

Requests = Iterator[Request]

UNIFORM = Uniform.name
EPISODES = 4096
"""Episodes of one message of a list, at most."""
DEFAULT_WAIT_SECONDS = 10.0
"""How long a call waits for a rate limiter if its client does not say."""


class ReplayBufferService:
    """Handles the calls of ``replay_buffer.proto`` for some tables. `dispatch` has decoded a request before it comes here, and `guards` let it pass.

    Args:
        tables: the tables that the calls work on.
        shared_memory: where calls get the memory that they share with their clients.
        state: what the server knows of itself.
        limits: what clients may ask for.
    """

    def __init__(self, tables: Tables, shared_memory: SharedMemory, state: ServerState, limits: ServerLimits) -> None:
        self._tables, self._shared_memory, self._state, self._limits = tables, shared_memory, state, limits
        self._to = _Inserting(tables, limits)

    def Add(self, request: Request, call: Call) -> pb.AddResponse:
        return pb.AddResponse(**_insert(self._to, request.head.table, request.head, call, _wait(request.head, call), request.block))

    def AddBatch(self, requests: Requests, call: Call) -> Iterator[pb.AddBatchResponse]:
        opening = next(requests, None)
        if opening is None:
            return
        offered = opening.head.shared_slots
        with self._shared_memory.share(call.peer, offered, opening.head.slot_bytes) as segments, closing(CallWriters()) as writers:
            if offered:
                yield pb.AddBatchResponse(shared_memory=offer(segments))
            table = opening.head.table
            for request in requests if offered else itertools.chain([opening], requests):
                table = request.head.table or table
                wait = _wait(opening.head, call)
                yield pb.AddBatchResponse(**_insert(self._to, table, request.head, call, wait, *_block(request, segments), writers=writers))

    def Sample(self, requests: Requests, call: Call) -> Iterator[Any]:
        query = _first(requests)
        table, asked = self._tables[query.table], _batch_query(query, self._limits)
        draw = _drawing(table, query, query.first_batch, asked, call)
        row = table.row_format(asked)
        sampled = SampleCall(table, query, draw if query.standing else _unchanging(draw, row))
        most = batches_per_message(query.batches_per_message, asked.rows, row)
        call.accept()
        if query.HasField("client_memory"):
            rows = PlacedRows(table, row, asked.rows, _unchanging(draw, row))
            offer = None if table.counts_draws or asked.windows is not None or query.HasField("seed") else query.client_memory
            yield from placed_rows(rows, requests, self._shared_memory.reach(call.peer, offer, rows.layout.size), sampled)
            return
        with closing(sampled), self._shared_memory.share(call.peer, query.shared_slots, row.block(most * asked.rows).size) as segments:
            if table.counts_draws:
                granted = Credits(query.credits, read_ahead(requests, sampled.note), segments)
            else:
                granted = Credits(query.credits, requests, segments, sampled.note)
            batches = sampled.batches(granted, most)
            yield from streamed(table, batches, pb.SampleResponse, segments, offered=query.shared_slots > 0)

    def SampleBatch(self, request: Request, call: Call) -> Iterator[bytes]:
        query = request.head
        table, asked = self._tables[query.table], _batch_query(query, self._limits)
        draw = _drawing(table, query, query.batch, asked, call)
        with _room_for_others(table, call):
            selection, leases = draw(1, None)
        sent = SentBatches()
        sent.sent(leases, 1)
        with closing(sent):
            yield from messages(table, Outgoing(selection, asked.rows, draw_head(query, selection)), pb.SampleBatchResponse)
            sent.all_taken()

    def SampleByIndex(self, request: Request, call: Call) -> Iterator[bytes]:
        table, query = self._tables[request.head.table], request.head
        if query.HasField("epoch"):
            return epoch_rows(table, query, _fields(query.fields), _windows(query))
        _check_names_slots(query)
        rows = check_whole(len(query.index), "the number of slots in index", 1, MAX_BATCH_SIZE)
        check_rows(self._limits, rows)
        slots, fields, windows = np.array(query.index, np.int64), _fields(query.fields), _windows(query)
        if query.with_priorities and windows is not None:
            raise InvalidArgumentError("with_priorities: priorities do not come with windows")
        selection = table.select_slots_with_priorities(slots, fields) if query.with_priorities else table.select_slots(slots, fields, windows)
        return messages(table, Outgoing(selection, rows), pb.SampleByIndexResponse)

    def SampleEpisode(self, request: Request, call: Call) -> Iterator[bytes]:
        table = self._tables[request.head.table]
        selection, has_final = table.select_episode(request.head.episode_id, _fields(request.head.fields))
        return messages(table, Outgoing(selection, selection.rows, {"has_final": has_final}), pb.SampleEpisodeResponse)

    def ListEpisodes(self, request: Request, call: Call) -> Iterator[pb.ListEpisodesResponse]:
        newest = check_whole(request.head.newest, "newest", 0)
        episodes = self._tables[request.head.table].episodes()
        for start in range(max(0, len(episodes) - newest) if newest else 0, len(episodes), EPISODES):
            part = episodes.part(start, start + EPISODES)
            yield pb.ListEpisodesResponse(episodes=map(episode_to_message, part))

    def SampleAll(self, request: Request, call: Call) -> Iterator[bytes]:
        table = self._tables[request.head.table]
        selection = table.select_all(_fields(request.head.fields))
        return messages(table, Outgoing(selection, selection.rows), pb.SampleAllResponse)

    def Epoch(self, requests: Requests, call: Call) -> Iterator[Any]:
        query = _first(requests)
        table, asked = self._tables[query.table], epoch_query_from_message(query, _fields(query.fields))
        check_rows(self._limits, asked.batch_size)
        plan = (
            plan_from_message(query, asked, of_steps=bool(table.config.trajectories)) if query.generation_id else table.plan_epochs(asked, asked.seed)
        )
        place = place_from_message(query)
        batches = table.epochs(plan, place)
        most = batches_per_message(query.batches_per_message, asked.batch_size, batches.format)
        check_whole(query.credits, "credits", 0)
        call.accept()
        block = batches.format.block(most * min(asked.batch_size, plan.rows))
        with self._shared_memory.share(call.peer, query.shared_slots, block.size) as segments:
            if query.shared_slots > 0:
                yield pb.EpochResponse(shared_memory=offer(segments))
            granted = Credits(query.credits, requests, segments)
            stream = EpochStream(table, batches, segments, lambda: call.is_active, says_progress=bool(query.generation_id))
            yield from stream.messages(place, granted, most)

    def UpdatePriorities(self, request: Request, call: Call) -> pb.UpdatePrioritiesResponse:
        return pb.UpdatePrioritiesResponse(**updated(self._tables[request.head.table], (request.head.update,))._asdict())

    def Describe(self, request: Request, call: Call) -> pb.DescribeResponse:
        table, query = self._tables[request.head.table], request.head
        message, shard = description_to_message(table.describe()), self._tables.shard
        message.cluster = shard.cluster
        room = table.insert_room()
        if room is not None:
            message.insert_room = room
        if shard.number is not None:
            message.shard = shard.number
        if query.wants_totals:
            message.totals.CopyFrom(pb.DrawTotals(**table.totals(_totals_query(query))._asdict()))
        return message

    def Checkpoint(self, request: Request, call: Call) -> Iterator[pb.CheckpointResponse]:
        return checkpointed(self._tables[request.head.table], request.head.name)

    def CreateTable(self, request: Request, call: Call) -> pb.CreateTableResponse:
        query = request.head
        request_ = table_request_from_message(query, check_name(query.table, "table"))
        return pb.CreateTableResponse(created=self._tables.create(request_) if call.principal.may_create else self._tables.check(request_))

    def DropTable(self, request: Request, call: Call) -> pb.DropTableResponse:
        self._tables.drop(request.head.table)
        return pb.DropTableResponse()

    def ServerStatus(self, request: Request, call: Call) -> pb.ServerStatusResponse:
        return server_status_to_message(self._state.now())

    def ListTables(self, request: Request, call: Call) -> pb.ListTablesResponse:
        return pb.ListTablesResponse(tables=filter(call.principal.may_use, self._tables.names()))

    def Reset(self, request: Request, call: Call) -> pb.ResetResponse:
        name, size = request.head.table, request.head.buffer_size
        if size:
            self._tables.write(name, lambda table: table.reset(size))
        else:
            self._tables[name].reset()
        return pb.ResetResponse()

    def Rewind(self, request: Request, call: Call) -> pb.RewindResponse:
        query = request.head
        self._tables.write(query.table, lambda table: table.rewind(query.buffer_size, query.size, query.write_count))
        return pb.RewindResponse()


def _block(request: Request, segments: Segments | None) -> tuple[Bytes, bool]:
    """The memory in which a request's block lies, and whether that may be longer than the block, as a segment is."""
    if not request.head.HasField("slot"):
        return request.block, False
    if segments is None:
        raise InvalidArgumentError(f"slot ({request.head.slot}): the server shares no memory with this call")
    return segments[request.head.slot], True


class _Inserting(NamedTuple):
    """Where blocks go, and how large they may be."""

    tables: Tables
    limits: ServerLimits


def _insert(
    to: _Inserting, name: str, head: Any, call: Call, wait: Wait, block: Bytes, longer: bool = False, writers: CallWriters | None = None
) -> dict[str, Any]:
    """Stores a block in the table of that name, and gives the fields of the answer. `longer`: as `_block` gives it."""
    decoded = decode(block, longer=longer)
    if not 1 <= decoded.rows <= MAX_BATCH_SIZE:
        raise InvalidArgumentError(f"batch_shape ({list(decoded.batch_shape)}): a block must hold 1 to {MAX_BATCH_SIZE} rows")
    check_block(to.limits, decoded)
    columns = checked_places(decoded, changing=longer)
    key = InsertKey.of(head.writer_id, head.sequence, columns)
    schema, priorities = _without_priorities(decoded, columns) if head.has_priorities else (decoded.header.schema, None)

    def stored(table: Table) -> dict[str, Any]:
        if writers is not None and key is not None:
            writers.note(table, head.writer_id)
        with _room_for_others(table, call):
            first, again = table.insert(columns, schema, decoded.rows, key, priorities, wait)
        return {"first_row_id": first, "rows": decoded.rows, "durability": durability_to_message(table.durability), "already_stored": again}

    return to.tables.write(name, stored)


def _room_for_others(table: Table, call: Call) -> AbstractContextManager[object]:
    """For ``with``: a call that may wait for a rate limiter makes room for others, and ends at once when the server stops."""
    return call.waiting_for_others() if table.counts_draws else nullcontext()


def _without_priorities(block: Block, columns: dict[str, Rows]) -> tuple[Schema, Priorities]:
    """The schema of rows that come with their priorities, and these, which are taken out of `columns`."""
    schema = block.header.schema
    given = schema.fields_by_name.get(PRIORITY.name)
    if given is None or (given.dtype, given.shape) != (PRIORITY.dtype, PRIORITY.shape):
        raise SchemaError(f"has_priorities: the block must have a field {PRIORITY.name!r}, {PRIORITY}")
    priorities = columns.pop(PRIORITY.name).view(np.float64)
    return schema.without((PRIORITY.name,)), checked_priorities(priorities, block.rows)


def _wait(query: Any, call: Call) -> Wait:
    """How long a call may wait for a rate limiter, from now on."""
    seconds = query.wait_seconds if query.HasField("wait_seconds") else DEFAULT_WAIT_SECONDS
    return Wait(time.monotonic() + check_number(seconds, "wait_seconds", 0), lambda: call.is_active)


def _batch_query(query: Any, limits: ServerLimits) -> BatchQuery:
    uniform, rows, fields = _is_uniform(query), check_batch_size(query.batch_size), _fields(query.fields)
    check_rows(limits, rows)
    return BatchQuery(rows, fields, uniform, query.knows_priorities, _windows(query), query.wants_totals)


def _totals_query(query: Any) -> BatchQuery:
    return BatchQuery(1, uniform=_is_uniform(query), windows=_windows(query))


def _is_uniform(query: Any) -> bool:
    return check_choice(query.sampler, "sampler", ("", UNIFORM)) == UNIFORM


def _check_names_slots(query: Any) -> None:
    """Passes where a request that is of no epoch names rows by the slots in which they lie alone."""
    if len(query.row_ids):
        raise InvalidArgumentError(f"row_ids ({len(query.row_ids)}) need epoch: rows that are of no epoch are named by their slots, in index")
    if query.generation_id:
        raise InvalidArgumentError(f"generation_id ({shown(query.generation_id)}) belongs to the row_ids of an epoch, and there is no epoch")


def _windows(query: Any) -> WindowQuery | None:
    return window_query_from_message(query.windows) if query.HasField("windows") else None


def _first(requests: Requests) -> Any:
    """The fields of a stream's first message, which is the query. A client that has no segment yet can release none."""
    request = next(requests, None)
    if request is None:
        raise InvalidArgumentError("the stream ended before its first message, which holds the query")
    check_whole(len(request.head.released_slots), "the number of released_slots in the first message", 0, 0)
    if isinstance(request.head, pb.SampleRequest):
        check_whole(request.head.taken, "taken in the first message", 0, 0)
        check_whole(len(request.head.updates), "the number of updates in the first message", 0, 0)
        check_whole(len(request.head.next), "the number of batches in next in the first message", 0, 0)
        check_whole(len(request.head.placed), "the number of placed in the first message", 0, 0)
    return request.head


def _drawing(table: Table, query: Any, first: int, asked: BatchQuery, call: Call) -> DrawBatches:
    """A function that draws up to so many batches at once. Where the query has a seed, they are its next ones, from number `first` on."""
    seeded = generators_of(query.seed if query.HasField("seed") else 0, first)  # Checked in any case.
    generators = seeded if query.HasField("seed") else table.unseeded

    def drawn(batches: int, named: Any) -> Drawn:
        if named is None:
            return table.draw(asked, batches, generators, _wait(query, call))
        own = generators_of(named.seed, named.batch) if named.HasField("seed") else generators
        return table.draw(replace(asked, rows=named.rows), 1, own, _wait(named if named.HasField("wait_seconds") else query, call))

    return drawn


def _unchanging(draw: DrawBatches, row: RowFormat) -> DrawBatches:
    """`draw`, which raises TableChangedError once the table's rows have another format, as they may after a reset.

    Each batch of a standing call stands for a call of its own, so these need not be alike.
    """

    def drawn(batches: int, named: Any) -> Drawn:
        try:
            found = draw(batches, named)
        except (FieldNotFoundError, TableNotFoundError) as error:
            raise TableChangedError(f"the table was reset or dropped while it was read: {error}") from None
        if found.selection.format != row:
            raise TableChangedError("the table was reset while it was read, and its rows have another schema now")
        return found

    return drawn


def _fields(names: Sequence[str]) -> tuple[str, ...] | None:
    check_whole(len(names), "the number of names in fields", 0, MAX_FIELD_NAMES)
    return tuple(names) or None
