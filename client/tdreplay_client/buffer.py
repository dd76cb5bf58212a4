"""The replay buffer over the wire: the API of `tdreplay.api`, served by a tdreplay server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from google.protobuf.message import Message
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer, Checkpoint, State
from tdreplay.description_messages import description_from_message
from tdreplay.epochs import EpochPlan, EpochQuery
from tdreplay.errors import EmptyTableError, InvalidArgumentError, TableExistsError, UnimplementedError
from tdreplay.limits import DEFAULT_TABLE, DEFAULT_TIMEOUT, MAX_BATCH_SIZE, MAX_INT64, check_batch_size, check_flag, check_seconds, check_whole
from tdreplay.messages import state_from_message
from tdreplay.metadata import Metadata
from tdreplay.priorities import Updated, checked_priorities, checked_row_ids
from tdreplay.progress import Progress, Shown, reporting
from tdreplay.rate_limiters import RateLimiter, Unlimited
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.samplers import Sampler, Uniform
from tdreplay.selecting import Fields, Slots, as_fields
from tdreplay.server_status import ServerStatus
from tdreplay.server_status_messages import server_status_from_message
from tdreplay.table_config import TableRequest
from tdreplay.table_description import TableDescription
from tdreplay.table_messages import table_config_from_message, trajectories_from_message
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import Episode
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView, View
from tdreplay.window_messages import window_query_to_message
from tdreplay_client.reading.assembly import only_batch
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.episodes import episode_rows, listed_episodes
from tdreplay_client.reading.epochs import EpochStream, RemoteEpochs
from tdreplay_client.reading.priority_updates import update_priorities
from tdreplay_client.reading.single_batches import Asked, Draw, SingleBatches
from tdreplay_client.reading.stream import BatchStream
from tdreplay_client.transport.access import TLS, Access
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.transport.table_requests import check_understood, create_table
from tdreplay_client.transport.targets import Target, found_target
from tdreplay_client.writing.block_rows import most_block_rows
from tdreplay_client.writing.known_schema import KnownSchema
from tdreplay_client.writing.pipeline import finish_all
from tdreplay_client.writing.single_inserts import SingleInserts
from tdreplay_client.writing.trajectory_sink import WriterSink
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts
from tdreplay_client.writing.writer import Writer

__all__ = ["RemoteReplayBuffer"]

MAX_PREFETCH = 1024
READ_AHEAD = 2
"""Batches of an epoch that are on their way while one is used."""


class RemoteReplayBuffer(BaseReplayBuffer):
    """A table of a tdreplay server. See `BaseReplayBuffer` for its methods.

    Args:
        address: the address of the server: HOST:PORT, [IPV6]:PORT or unix:PATH. None: as the environment (TDREPLAY_ADDRESS) or the profile says.
        device: the training device, to which batches go.
        table: the table's name.
        storing_device: where the table's rows lie. None: wherever the server has them.
        buffer_size: the capacity in rows. It creates the table, or checks that the existing one has this capacity. None: the table exists already.
        sampler: what chooses the rows of a batch: a value as `Prioritized(alpha=0.6)`, a name as "fifo", or a mapping of ``name`` and its numbers.
            None: `Uniform` in a new table, any in one that exists.
        rate_limiter: what decides who has to wait, as `SamplesPerInsert(4.0, min_size=1000, error_buffer=100)`, in the same forms. None: nobody waits
            in a new table; any in one that exists.
        max_times_sampled: how often a row is drawn before it leaves; 0: any number of times. None: 0 in a new table, any in one that exists.
        trajectories: what the table knows of the episodes whose steps its rows are: True or a `Trajectories`. None: nothing in a new table, anything
            in one that exists.
        timeout: the most seconds that a call waits for an answer, that a stream waits for its next message, and that either waits for a server which
            is not there. None, inf: without a limit (a year).
        transport: how rows travel, both ways. "grpc": in gRPC messages. "auto" and "shared_memory": large batches through memory that server and
            client share, where both are on one host and run as the same user; everything else in messages.
        seed: makes random batches, streams and shuffled epochs reproducible, as in `BaseReplayBuffer`.
        cast: whether `add`, `add_batch` and writers convert values of another dtype than the table's field; see `BaseReplayBuffer`.
        tls: how the connection is encrypted: a `TLS`, which counts as it is; True: with the files that the environment and the profile name; False:
            not at all. None: as the environment and the profile say; else not at all.
        token: what the server knows the caller by. None: what the environment and the profile say; else nothing. Without TLS it is sent over
            loopback and Unix sockets alone.
        profile: the name of a profile, which says what neither an argument nor the environment says. None: TDREPLAY_PROFILE, or none.

    When the connection is lost, calls, writers, streams and epochs wait for the server and go on by themselves. Each row is stored once, however
    often it had to be sent. `reset`, `drop` and `checkpoint` are not repeated.

    Where a rate limiter makes a call wait, or rows that leave, it waits as long as `timeout`, and then raises `RateLimitedError`, which says what it
    waited for.

    A buffer can be pickled and copied. The copy has the same arguments, and opens a connection of its own at its first call. It creates no table, and
    begins its seed anew. The pickle has the token in it: keep it as secret as that.

    Where the server has too much to do, a call waits as long as the server says, and tries again within `timeout`; then it is an `OverloadedError`.

    Every method may also raise `ServerUnavailableError` (the server cannot be reached, and did not come back in time), `DeadlineError` (the server
    does not answer) and `ClosedError`. After the first two it is unknown whether rows were stored. Give this buffer the same rows again, and they are
    stored once: a row to `add`, a batch to `add_batch` or a writer's `extend`, the ``rows`` of a writer's error to either of the last two.

    Raises:
        TableNotFoundError: buffer_size is None, and there is no such table.
        TableExistsError: it is there with other settings; the message says which.
        InvalidArgumentError: an argument breaks its rule.
        UnauthenticatedError, PermissionDeniedError: the server does not know the caller, or does not let it use the table.
    """

    _wants_totals = False  # Whether batches say of what they were drawn.

    def __init__(
        self,
        address: str | None = None,
        *,
        device: torch.device | str = "cpu",
        table: str = DEFAULT_TABLE,
        storing_device: torch.device | str | None = None,
        buffer_size: SupportsIndex | None = None,
        sampler: Sampler | str | Mapping[str, Any] | None = None,
        rate_limiter: RateLimiter | str | Mapping[str, Any] | None = None,
        max_times_sampled: SupportsIndex | None = None,
        trajectories: Trajectories | Mapping[str, Any] | bool | None = None,
        timeout: SupportsFloat | None = DEFAULT_TIMEOUT,
        transport: Literal["auto", "shared_memory", "grpc"] = "auto",
        cast: bool = False,
        seed: SupportsIndex | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        profile: str | None = None,
    ) -> None:
        request = TableRequest.of(buffer_size, storing_device, sampler, rate_limiter, max_times_sampled, trajectories, table)
        target = found_target(address, tls, token, profile)
        self._open(target.address, device, request, timeout, transport, cast, seed, target.access)
        try:
            self._connection.retried(self._agree)
        except BaseException:
            self._connection.close()
            raise

    def _open(
        self,
        address: str,
        device: torch.device | str,
        request: TableRequest,
        timeout: SupportsFloat | None,
        transport: Literal["auto", "shared_memory", "grpc"],
        cast: bool,
        seed: SupportsIndex | None,
        access: Access,
    ) -> None:
        super().__init__(device, seed)
        if transport not in ("auto", "shared_memory", "grpc"):
            raise InvalidArgumentError(f"transport ({transport!r}) must be auto, shared_memory or grpc")
        self._connection = Connection(address, timeout, access)
        self._request, self._table, self._transport = request, request.name, transport
        self._config: pb.TableConfig | None = None  # Of the table, once it is known. An older server does not say it.
        self._episodes: Trajectories | Literal[False] = False  # What it knows of them; False: nothing, or the server was not asked.
        self._asked = False  # Whether the server was asked for it.
        self._storing_device: torch.device | None = None  # Of the table, once it is known.
        self._sharing = Sharing(self.address, wanted=transport != "grpc")
        self._transfer = self._made_transfer()
        self._unacknowledged = UnacknowledgedInserts()
        self._known_schema = KnownSchema(self._connection, self._table, cast=check_flag(cast, "cast"))
        self._inserts = SingleInserts(self._connection, self._table, self._sharing, self._unacknowledged)
        self._single_batches = SingleBatches(self._connection, self._table, self._transfer, self._sharing)

    def _made_transfer(self) -> DeviceTransfer:
        """What brings batches to the training device."""
        return DeviceTransfer(self._device)

    def _agree(self, budget: RetryBudget) -> None:
        if self._request.buffer_size is not None:
            create_table(self._connection, self._request, budget)
            self._described(budget)
            return
        check_understood(self._connection, self._request, budget)
        there = str(self._described(budget).storing_device)
        said, message = self._request, self._config
        if message is None:  # An older server does not say more.
            said, message = TableRequest(storing_device=said.storing_device), pb.TableConfig(buffer_size=1, storing_device=there)
        differing = said.differences(table_config_from_message(message, self._table))
        if differing:
            raise TableExistsError(f"table {self._table!r} is there with {', '.join(differing)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """The address, the table and the other arguments. The copy connects at its first call, and creates no table."""
        arguments = (
            self._device,
            self._request,
            self._connection.timeout,
            self._transport,
            self._known_schema.cast,
            self._seed,
            self._connection.access,
        )
        return _opened, (type(self), self.address, *arguments)

    @property
    def address(self) -> str:
        """The address of the server."""
        return self._connection.address

    @property
    def table(self) -> str:
        """The table's name."""
        return self._table

    @staticmethod
    def tables(
        address: str | None = None,
        *,
        timeout: SupportsFloat | None = DEFAULT_TIMEOUT,
        tls: TLS | bool | None = None,
        token: str | None = None,
        profile: str | None = None,
    ) -> list[str]:
        """The names of all tables of the server at `address` that the caller may use, sorted. The arguments are as in the constructor."""
        with _connected(found_target(address, tls, token, profile), timeout) as connection:
            return list(connection.retried(lambda budget: connection.unary("ListTables", pb.ListTablesRequest(), budget)).tables)

    @staticmethod
    def server_status(
        address: str | None = None,
        *,
        timeout: SupportsFloat | None = DEFAULT_TIMEOUT,
        tls: TLS | bool | None = None,
        token: str | None = None,
        profile: str | None = None,
    ) -> ServerStatus:
        """The state of the server at `address`: its version, memory, disk, limits and clients. The arguments are as in the constructor.

        Raises:
            PermissionDeniedError: the caller is neither a reader nor an admin.
        """
        with _connected(found_target(address, tls, token, profile), timeout) as connection:
            answer = connection.retried(lambda budget: connection.unary("ServerStatus", pb.ServerStatusRequest(), budget))
            return server_status_from_message(answer)

    def drop(self) -> None:
        """Removes the table and its rows from the server."""
        self._connection.admitted(lambda budget: self._connection.unary("DropTable", pb.DropTableRequest(table=self._table), budget))
        self._storing_device, self._asked = None, False
        self._begin_anew()

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def add(self, row: Row, *, priority: float | None = None) -> None:
        self.insert(given_row(row).prioritized(priority))

    def add_batch(self, batch: Row, *, priorities: Any = None) -> None:
        """As in `BaseReplayBuffer`. A batch above a few MiB is stored in parts, pipelined; what is refused after the first part leaves it there."""
        self.insert(given_rows(batch).prioritized(priorities))

    def insert(self, rows: Given, *, writer_id: str = "") -> npt.NDArray[np.int64]:
        self._learn_config()
        return self._known_schema.insert(rows, partial(self._inserts.add, priorities=rows.priorities, writer_id=writer_id))

    def writer(self, *, flush_rows: SupportsIndex = 64, flush_seconds: float = 0.1, max_in_flight: SupportsIndex = 16) -> Writer:
        """A writer that coalesces rows into blocks and does not wait for each: ``with buffer.writer() as writer: writer.append(row)``.

        Args:
            flush_rows: the number of appended rows that are sent together. They are sent earlier where they fill a block: 2 MiB, or as many rows as
                a rate limiter lets in at once.
            flush_seconds: the longest time in seconds that an appended row waits for others.
            max_in_flight: the most blocks that wait for their acknowledgement, at most 32; `append` waits while there are more.
        """
        rows, blocks = check_whole(flush_rows, "flush_rows", 1, MAX_BATCH_SIZE), check_whole(max_in_flight, "max_in_flight", 1)
        seconds = check_seconds(flush_seconds, "flush_seconds")
        self._learn_config()
        return Writer(self._connection, self._table, self._sharing, self._unacknowledged, self._known_schema, rows, seconds, blocks)

    def trajectory_writer(
        self,
        n_envs: SupportsIndex = 1,
        *,
        autoreset: Any = None,
        flush_rows: SupportsIndex = 64,
        flush_seconds: float = 0.1,
        max_in_flight: SupportsIndex = 16,
    ) -> TrajectoryWriter:
        """As in `BaseReplayBuffer`; `flush_rows`, `flush_seconds` and `max_in_flight` are as in `writer`."""
        writer = self.writer(flush_rows=flush_rows, flush_seconds=flush_seconds, max_in_flight=max_in_flight)
        config = None if self._config is None else table_config_from_message(self._config, self._table)
        return TrajectoryWriter(WriterSink(writer, cast=self._known_schema.cast), config, n_envs, autoreset)

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        batch_size: SupportsIndex,
        *,
        seed: SupportsIndex | None = None,
        wait: bool = False,
        uniform: bool = False,
        view: View | None = None,
    ) -> TensorDict:
        size, rows, seen = check_batch_size(batch_size), check_flag(wait, "wait"), self._view_of(view)
        asked, draw = Asked(size, _sampler(uniform), seen), self._next_draw(seed)
        return self._connection.retried(lambda budget: self._random_batch(asked, draw, seed is None, budget), for_rows=rows)

    def _random_batch(self, asked: Asked, draw: Draw, standing: bool, budget: RetryBudget, wait: float | None = None) -> TensorDict:
        batch = self._single_batches.take(asked, draw, budget) if standing else None
        if batch is not None:
            return batch
        request = pb.SampleBatchRequest(
            table=self._table,
            batch_size=asked.rows,
            sampler=asked.sampler,
            knows_priorities=True,
            wait_seconds=budget.server_wait if wait is None else wait,
            windows=asked.windows,
            wants_totals=self._wants_totals,
        )
        if draw is not None:
            request.seed, request.batch = draw
        return self._one("SampleBatch", request, pb.SampleBatchResponse, range(asked.rows, asked.rows + 1), budget, asked.view)

    def update_priorities(self, row_ids: Any, priorities: Any) -> Updated:
        """As in `BaseReplayBuffer`. It is sent again where the connection was lost: the same priorities again change nothing more."""
        ids = checked_row_ids(row_ids)
        return update_priorities(self._connection, self._table, ids, checked_priorities(priorities, len(ids)))

    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool = False) -> TensorDict:
        around = None if view is None else window_query_to_message(view.windows)
        request = pb.SampleByIndexRequest(table=self._table, index=slots.tolist(), fields=fields, windows=around, with_priorities=priorities)
        sizes = range(len(slots), len(slots) + 1)
        return self._connection.retried(lambda budget: self._one("SampleByIndex", request, pb.SampleByIndexResponse, sizes, budget, view))

    def sample_all(self, *, progress: Shown = None) -> TensorDict:
        request, sizes = pb.SampleAllRequest(table=self._table), range(1, MAX_INT64)
        with reporting(progress, "sample_all") as told:
            return self._connection.retried(lambda budget: self._one("SampleAll", request, pb.SampleAllResponse, sizes, budget, None, told))

    def episodes(self) -> list[Episode]:
        return listed_episodes(self._connection, self._table)

    def _episode_rows(self, episode_id: int) -> tuple[TensorDict, bool]:
        return episode_rows(self._connection, self._table, episode_id, self._transfer)

    def _one(
        self,
        call: str,
        request: Message,
        response_type: type[Message],
        sizes: range,
        budget: RetryBudget,
        view: TableView | None = None,
        progress: Progress | None = None,
    ) -> TensorDict:
        """The one batch that a call answers with."""
        return only_batch(self._connection.stream(call, request, budget), response_type, self._transfer.for_view(view), sizes, progress).take()

    def _open_epochs(self, query: EpochQuery, seed: int | None, view: TableView | None) -> RemoteEpochs:
        plan = self._connection.retried(lambda budget: self._planned(query, seed, budget))
        return RemoteEpochs(plan, partial(EpochStream, self._connection, self._transfer, READ_AHEAD, self._sharing), view)

    def _planned(self, query: EpochQuery, seed: int | None, budget: RetryBudget) -> EpochPlan:
        """Epochs over the rows that are stored now."""
        table: pb.DescribeResponse = self._connection.unary("Describe", pb.DescribeRequest(table=self._table), budget)
        if not table.generation_id:
            raise UnimplementedError(f"server {self.address} is of an older version, whose epochs cannot go on")
        if not table.size:
            raise EmptyTableError("the table is empty: there is no row to read yet")
        rows = range(table.write_count - table.size, table.write_count)
        return EpochPlan.over(query, self._table, table.generation_id, rows, seed, of_steps=bool(trajectories_from_message(table.config)))

    def stream(
        self,
        batch_size: SupportsIndex,
        *,
        prefetch: SupportsIndex = 2,
        fields: Fields | None = None,
        seed: SupportsIndex | None = None,
        wait: bool = True,
        uniform: bool = False,
        view: View | None = None,
    ) -> BatchStream:
        """Random batches without end, the next ones already on their way and on `device`. It goes on by itself after the server was lost.

        Args:
            batch_size: rows per batch, which the table's sampler chooses. What a batch has beside its rows is said at `sample_batch`.
            prefetch: the most batches that are on their way. So a batch that is taken was drawn at most that many batches ago.
            fields: as in `sample_by_index_fields`; None: all of them.
            seed: batch number k of the stream is batch number k of the seed, after a lost connection too: the same seed gives the same batches, as
                long as the table holds the same rows. None: where the buffer has a seed, each of its streams gets one that follows from it.
            wait: whether the first batch waits while the table is empty, at most `timeout` seconds; the stream itself opens at once. False: an empty
                table is an EmptyTableError at once.
            uniform: as in `sample_batch`.
            view: as in `sample_batch`. What it needs comes, whatever `fields` names. Its batches are made on `device`.

        Where a rate limiter or missing rows make a batch wait for longer than `timeout`, it is a RateLimitedError. Whoever asks for the next batch
        then waits again.
        """
        size, ahead = check_batch_size(batch_size), check_whole(prefetch, "prefetch", 1, MAX_PREFETCH)
        names, rows = as_fields(fields), check_flag(wait, "wait")
        asked = Asked(size, _sampler(uniform), self._view_of(view))
        number = self._next_order() if seed is None else check_whole(seed, "seed", 0)
        query = pb.SampleRequest(
            table=self._table,
            batch_size=asked.rows,
            fields=names,
            seed=number,
            sampler=asked.sampler,
            knows_priorities=True,
            says_taken=True,
            windows=asked.windows,
            wants_totals=self._wants_totals,
        )
        counted = self._counts_draws
        return BatchStream(self._connection, query, self._transfer, ahead, self._sharing, wait=rows, counted=counted, view=asked.view)

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        return self._connection.retried(self._described)

    @property
    def storing_device(self) -> torch.device:
        self._connection.owner.check()
        return self._storing_device or self.state().storing_device

    def describe(self) -> TableDescription:
        return self._connection.retried(lambda budget: description_from_message(self._answer(budget), self._table))

    def _answer(self, budget: RetryBudget | None) -> Any:
        return self._connection.unary("Describe", pb.DescribeRequest(table=self._table), budget)

    def _learn_config(self) -> None:
        """Sees to it that the server was asked what the table was made with."""
        if not self._asked:
            self.state()

    def _trajectories(self) -> Trajectories | Literal[False]:
        self._learn_config()
        if not self._episodes:
            self._connection.retried(self._described)  # The table may be another one by now.
        return self._episodes

    @property
    def _counts_draws(self) -> bool:
        """Whether rows leave when they were drawn, or a rate limiter counts what is drawn; True where it is not known."""
        self._learn_config()
        config = self._config
        return config is None or config.max_times_sampled > 0 or config.rate_limiter.name not in ("", Unlimited.name)

    def _described(self, budget: RetryBudget | None = None) -> State:
        return self._noted(self._answer(budget))

    def _noted(self, answer: Any) -> State:
        """Notes what the server says of the table, and gives its state."""
        state = state_from_message(answer)
        self._storing_device = state.storing_device
        self._config, self._asked = answer.config if answer.HasField("config") else None, True
        self._episodes = trajectories_from_message(answer.config)
        self._unacknowledged.block_rows = most_block_rows(answer.config)
        return state

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        size = 0 if buffer_size is None else check_whole(buffer_size, "buffer_size", 1)
        request = pb.ResetRequest(table=self._table, buffer_size=size)
        self._connection.admitted(lambda budget: self._connection.unary("Reset", request, budget))
        self._begin_anew()

    def _rewind(self, metadata: Metadata) -> None:
        sizes = {"buffer_size": metadata.buffer_size, "size": metadata.data_size, "write_count": metadata.write_count}
        request = pb.RewindRequest(table=self._table, **sizes)
        self._connection.retried(lambda budget: self._connection.unary("Rewind", request, budget))
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forgets what is known of earlier rows: the table does not hold them any more."""
        self._iterator = None
        self._unacknowledged.clear()
        self._known_schema.forget()

    def checkpoint(self, name: str, *, progress: Shown = None) -> Checkpoint:
        """As in `BaseReplayBuffer`; the path is one of the server's. `timeout` limits the time between two signs of progress, not the whole."""
        with reporting(progress, "checkpoint", "bytes") as told:
            return self._connection.admitted(lambda _: self._checkpointed(name, told))

    def _checkpointed(self, name: str, progress: Progress | None) -> Checkpoint:
        answers = self._connection.stream("Checkpoint", pb.CheckpointRequest(table=self._table, name=name))
        last: Any = None
        try:
            for last in answers:
                if progress is not None:
                    progress(last.bytes, last.total_bytes)
        finally:
            answers.close()
        if last is None or not last.path:
            raise self._connection.lost_error("ended the call before the checkpoint was whole")
        return Checkpoint(last.path, last.rows, last.write_count, last.bytes)

    def close(self) -> None:
        """Closes the open writers, each after it sent its rows, then the connection. Running calls end with a ClosedError.

        It waits for the writers at most `timeout` seconds. Closing twice is allowed. The table stays.
        """
        self._iterator = None
        finish_all(self._connection, self._connection.timeout, "its buffer was closed")
        self._connection.close()
        self._inserts.close()
        self._single_batches.close()


@contextmanager
def _connected(target: Target, timeout: SupportsFloat | None) -> Iterator[Connection]:
    """For ``with``: a connection for a call about the whole server."""
    connection = Connection(target.address, timeout, target.access)
    try:
        yield connection
    finally:
        connection.close()


def _sampler(uniform: object) -> str:
    """What is to choose the rows, in a request: '' stands for the sampler of the table."""
    return Uniform.name if check_flag(uniform, "uniform") else ""


def _opened(kind: type[RemoteReplayBuffer], address: str, *arguments: Any) -> RemoteReplayBuffer:
    """The copy of a buffer that was pickled or copied."""
    buffer = kind.__new__(kind)
    buffer._open(address, *arguments)
    return buffer
