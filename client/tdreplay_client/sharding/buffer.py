"""One replay buffer over the tables of several servers: the API of `tdreplay.api`."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer
from tdreplay.epochs import EpochQuery
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import DEFAULT_TABLE, DEFAULT_TIMEOUT, MAX_ROW_ID, check_batch_size, check_choice, check_flag, check_seconds, check_whole, shown
from tdreplay.metadata import Metadata
from tdreplay.priorities import Updated
from tdreplay.progress import Shown, reporting
from tdreplay.rate_limiters import RateLimiter, Unlimited
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.samplers import Sampler, Uniform
from tdreplay.selecting import Fields, Index, Slots, as_fields, as_slots
from tdreplay.state import State
from tdreplay.system_fields import LOST_SHARDS
from tdreplay.table_config import TableRequest, check_limiter
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import Episode
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay.views import TableView, View
from tdreplay_client.buffer import MAX_PREFETCH
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.single_batches import Asked
from tdreplay_client.sharding.checkpoints import ShardedCheckpoint, checkpoint_shards
from tdreplay_client.sharding.description import ShardDescription, ShardedDescription, whole_description, whole_state
from tdreplay_client.sharding.directory import Directory, as_directory
from tdreplay_client.sharding.draw_query import DrawQuery
from tdreplay_client.sharding.drawn_stream import DrawnStream
from tdreplay_client.sharding.draws import Draws
from tdreplay_client.sharding.epochs import ShardedEpochs, described, plan_over
from tdreplay_client.sharding.inserts import ShardedInserts
from tdreplay_client.sharding.keeper import Keeper
from tdreplay_client.sharding.lookups import StoredSlots, all_rows, episode_rows, listed_episodes, rows_in_slots
from tdreplay_client.sharding.opening import Opening, member_of
from tdreplay_client.sharding.placement import next_slot
from tdreplay_client.sharding.priority_updates import update_shards
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.saved_state import load_shards, save_shards
from tdreplay_client.sharding.shard import Shard, ShardPlace
from tdreplay_client.sharding.shard_set import ShardSet, in_places
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_client.sharding.shard_writer import checked_settings
from tdreplay_client.sharding.shares import share_of
from tdreplay_client.sharding.stream import ShardedStream
from tdreplay_client.sharding.stream_plan import StreamPlan
from tdreplay_client.sharding.totals import KnownTotals
from tdreplay_client.sharding.writer import ShardedWriter
from tdreplay_client.sharding.writer_watch import WriterWatch
from tdreplay_client.transport.access import TLS
from tdreplay_client.writing.trajectory_sink import WriterSink

__all__ = ["ShardedReplayBuffer"]

ON_LOSS = ("raise", "degrade")
PLACEMENTS = ("fill", "hash", "local")


class ShardedReplayBuffer(BaseReplayBuffer):
    """One buffer over the tables of several servers. See `BaseReplayBuffer` for its methods, and `RemoteReplayBuffer` for what is not said here.

    Args:
        addresses: those of the shards, in order: the first one is shard 0. Or a `Directory`, which says where the shards are, as that of a
            `ReplayCluster` does.
        on_loss: what becomes of reads while a shard does not answer. "raise": they wait for it as long as `timeout`, and then raise
            `ServerUnavailableError`. "degrade": within two seconds they go on with the other shards, whose rows alone are drawn. It is said in the
            log, in `describe` and in the batch: its field ``lost_shards`` (int64 of shape [n]) is the number of shards that were not drawn from.
        placement: which shard a row goes to. "fill": the one with the most room. "hash": a writer's rows all go to the shard that its key says; a
            writer without one has a random one. "local": the shard on this host, where there is one. A writer, and so an episode, stays on one shard.

    `buffer_size` and what a rate limiter counts are those of the whole buffer: each shard has its part.
    """

    def __init__(
        self,
        addresses: Iterable[str] | Directory,
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
        on_loss: Literal["raise", "degrade"] = "raise",
        placement: Literal["fill", "hash", "local"] = "fill",
    ) -> None:
        super().__init__(device, seed)
        request = TableRequest.of(buffer_size, storing_device, sampler, rate_limiter, max_times_sampled, trajectories, table)
        if request.buffer_size is not None:
            check_limiter(request.config("cpu"))  # The whole; each shard checks its part.
        goes_on = check_choice(on_loss, "on_loss", ON_LOSS) == "degrade"
        access: dict[str, Any] = {"tls": tls, "token": token, "profile": profile}
        opening = Opening(request, check_seconds(timeout, "timeout"), transport, check_flag(cast, "cast"), access, goes_on)
        self._open(ShardSet(as_directory(addresses), opening), opening, check_choice(placement, "placement", PLACEMENTS))
        try:
            self._shards.agree()
        except BaseException:
            self._shards.close()
            raise

    def _open(self, shards: ShardSet, opening: Opening, placement: str) -> None:
        self._shards, self._opening, self._placement = shards, opening, placement
        self._request, self._timeout, self._cast = opening.request, opening.timeout, opening.cast
        self._transfer = DeviceTransfer(self._device)
        self._totals = KnownTotals()
        self._draws = Draws(shards, self._totals, self._transfer, self._timeout)
        self._inserts = ShardedInserts(shards, placement, self._totals, cast=self._cast)
        self._writer_watch = WriterWatch()

    def __reduce__(self) -> tuple[Any, ...]:
        """The shards' places and the other arguments. The copy connects at its first call, and creates no table."""
        shards = self._shards
        return _copied, (type(self), self._device, self._seed, shards.directory, self._opening, self._placement, shards.places, len(shards))

    @property
    def addresses(self) -> list[str]:
        """The addresses of the shards, by number."""
        return [place.address for place in self._shards.places]

    @property
    def table(self) -> str:
        """The table's name, which is the same on all shards."""
        return self._request.name

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def add(self, row: Row, *, priority: float | None = None) -> None:
        self.insert(given_row(row).prioritized(priority))

    def add_batch(self, batch: Row, *, priorities: Any = None) -> None:
        """As in `BaseReplayBuffer`. A small batch goes to one shard, a larger one to all: its rows in turn, or where they are steps, by episodes."""
        self.insert(given_rows(batch).prioritized(priorities))

    def insert(self, rows: Given, *, writer_id: str = "") -> npt.NDArray[np.int64]:
        """As in `BaseReplayBuffer`. All rows of a writer id go to one shard, which the id says."""
        return self._inserts.insert(rows, writer_id=writer_id)

    def writer(
        self, *, flush_rows: SupportsIndex = 64, flush_seconds: float = 0.1, max_in_flight: SupportsIndex = 16, key: str = ""
    ) -> ShardedWriter:
        """As `RemoteReplayBuffer.writer`. Its rows stay on one shard, and move to another one when that is lost.

        All writers of a `key`, in whatever process, go to the same shard while the shards are the same, and it is there.
        """
        settings = checked_settings(flush_rows, flush_seconds, max_in_flight)
        return ShardedWriter(self._inserts, self._writer_watch, settings, key=self._key(key))

    def _key(self, key: str) -> str:
        """The key of a writer. By hash, one that was given none has one of its own; else it goes to any shard."""
        if not isinstance(key, str):
            raise InvalidArgumentError(f"key ({shown(key)}) must be a text")
        return key or (uuid.uuid4().hex if self._placement == "hash" else "")

    def trajectory_writer(
        self,
        n_envs: SupportsIndex = 1,
        *,
        autoreset: Any = None,
        flush_rows: SupportsIndex = 64,
        flush_seconds: float = 0.1,
        max_in_flight: SupportsIndex = 16,
        key: str = "",
    ) -> TrajectoryWriter:
        """As `RemoteReplayBuffer.trajectory_writer`. All steps go to one shard, that of the `key` as with `writer`.

        When it is lost, the running episode waits for it.

        The next episode goes on with another shard: that of the one environment, or, where there are several, when all begin one.
        """
        settings = checked_settings(flush_rows, flush_seconds, max_in_flight)
        config = self._inserts.choice.config()
        writer = ShardedWriter(self._inserts, self._writer_watch, settings, key=self._key(key), for_episodes=True)
        return TrajectoryWriter(WriterSink(writer, cast=self._cast), config, n_envs, autoreset)

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
        query = DrawQuery(size, check_flag(uniform, "uniform"), seen, self._next_draw(seed), wait=rows)
        return self._draws.batch(query)

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
    ) -> ShardedStream | DrawnStream:
        """As `RemoteReplayBuffer.stream`, over all shards: see `ShardedStream`. Where rows leave when they were drawn, nothing is drawn ahead.

        Args:
            batch_size: Rows per batch.
            prefetch: About so many batches are drawn ahead of the one that is taken. Of small rows it is up to four times as many, and each shard
                draws 128 rows ahead at least.
            fields: As in `RemoteReplayBuffer.stream`, as the rest is.
            seed: The same seed gives the same batches as long as the shards are the same, and each holds the same rows.
            wait: Whether the first batch waits while all shards are empty.
            uniform: Whether all rows are equally probable.
            view: What the batches are made of.
        """
        asked = Asked(check_batch_size(batch_size), Uniform.name if check_flag(uniform, "uniform") else "", self._view_of(view))
        ahead, names, waits = check_whole(prefetch, "prefetch", 1, MAX_PREFETCH), self._stored(as_fields(fields)), check_flag(wait, "wait")
        number = self._next_order() if seed is None else check_whole(seed, "seed", 0)
        config, shards = self._shards.config, self._shards
        plan = StreamPlan(self.table, asked.rows, asked.view, waits, shards.goes_on, self._timeout)
        if config.max_times_sampled:
            return DrawnStream(self._draws, shards, self._totals, asked, plan, names, number)
        counted = config.rate_limiter != Unlimited()
        streams = PullStreams(asked, len(shards), ahead, fields=names, seed=number, counted=counted)
        return ShardedStream(plan, self._transfer, streams, Keeper(shards, streams))

    def _stored(self, fields: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The fields that shards are asked for: not ``lost_shards``, which each batch says where the buffer goes on without lost shards."""
        others = tuple(name for name in fields or () if name != LOST_SHARDS)
        return others if others and self._shards.goes_on else fields

    def update_priorities(self, row_ids: Any, priorities: Any) -> Updated:
        """As in `BaseReplayBuffer`, all shards at once; an id that was never given is refused by its shard, and the others change their rows.

        With ``on_loss="degrade"`` the rows of a shard that is lost count as stale: their updates are dropped.
        """
        return update_shards(self._shards, self._totals, row_ids, priorities)

    def _slots_of(self, index: Index) -> tuple[Slots, tuple[int, ...]]:
        stored = StoredSlots(self._states, self._shards)
        return as_slots(index, stored.state, stored.at)

    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool = False) -> TensorDict:
        return rows_in_slots(self._shards, self._transfer, slots, fields, view, priorities=priorities, state=self.state)

    def sample_all(self, *, progress: Shown = None) -> TensorDict:
        with reporting(progress, "sample_all") as told:
            return all_rows(self._shards, self._transfer, told)

    def episodes(self) -> list[Episode]:
        """As in `BaseReplayBuffer`; each shard's are of its own moment."""
        return listed_episodes(self._shards)

    def _episode_rows(self, episode_id: int) -> tuple[TensorDict, bool]:
        return episode_rows(self._shards, self._transfer, episode_id)

    def _trajectories(self) -> Trajectories | Literal[False]:
        if not self._shards.config.trajectories:
            self._shards.learn()  # It may have been dropped and made anew since.
        return self._shards.config.trajectories

    def _view_of(self, view: View | None) -> TableView | None:
        found = super()._view_of(view)
        if found is not None:
            rule = found.windows.rule
            self._shards.check_window(rule.before + rule.steps + rule.next_step)
        return found

    def _open_epochs(self, query: EpochQuery, seed: int | None, view: TableView | None) -> ShardedEpochs:
        patience = self._timeout if self._shards.goes_on else None
        plan = plan_over(query, self.table, described(self._shards, patience), seed)
        return ShardedEpochs(self._shards, plan, self._transfer, patience, view)

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def describe(self) -> ShardedDescription:
        """As in `BaseReplayBuffer`: sums, and by shard. Each shard's part is of its own moment."""
        found = dict(self._shards.on_those_there(lambda shard: member_of(shard, shard.asked(ShardTable.answer)).description))
        now = time.monotonic()
        shards = [
            ShardDescription(
                shard.number,
                shard.place.address,
                found.get(shard),
                0.0 if shard in found or shard.lost_since is None else now - shard.lost_since,
            )
            for shard in self._shards
        ]
        return whole_description(shards, self._pointer(list(found.items())))

    def state(self) -> State:
        """As in `BaseReplayBuffer`; each shard's part is of its own moment."""
        return self._states()[1]

    def _states(self) -> tuple[list[tuple[Shard, State]], State]:
        """The state of each shard that is there, and that of all of them."""
        found = self._shards.on_those_there(lambda shard: shard.asked(ShardTable.state))
        return found, whole_state([state for _, state in found], self._pointer(found))

    def _pointer(self, states: Sequence[tuple[Shard, State]]) -> int:
        """The slot of the next row, if it goes where the most room is."""
        asked = [shard for shard, _ in states]
        shards = in_places(self._shards.now, asked)
        return next_slot({shards.index(shard): state for shard, state in states}, len(shards))

    @property
    def storing_device(self) -> torch.device:
        there = next((shard for shard in self._shards if shard.is_there), self._shards[0])
        return there.reads.storing_device

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """As in `BaseReplayBuffer`: of a new capacity each shard gets its part. All shards must be there, else none of them is reset.

        Where rows become fewer than shards, or were, other shards are used from now on. Another client finds that out when it opens the buffer.
        """
        shards = self._shards.everywhere
        self._shards.each(lambda shard: shard.writes.state(), shards)
        asked = TableRequest()
        if buffer_size is not None:
            self._shards.learn()
            whole = self._shards.whole.resized(check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID))
            check_limiter(whole)  # Before one shard is reset that could be alone.
            asked = TableRequest(buffer_size=whole.buffer_size, rate_limiter=whole.rate_limiter)
        parts = {shard: share_of(asked, place, len(shards)).buffer_size for place, shard in enumerate(shards)}
        self._shards.each(lambda shard: shard.writes.reset(parts[shard]), shards)
        self._begin_anew()
        self._shards.learn()

    def drop(self) -> None:
        """Removes the table and its rows from all shards. All must be there, else it is removed from none."""
        shards = self._shards.everywhere
        self._shards.each(lambda shard: shard.writes.state(), shards)
        self._shards.each(lambda shard: shard.writes.drop(), shards)
        self._begin_anew()

    def checkpoint(self, name: str, *, progress: Shown = None, manifest: str | os.PathLike[str] | None = None) -> ShardedCheckpoint:
        """As in `BaseReplayBuffer`, on all shards at once; each shows one moment of its shard, and lies on its machine.

        Args:
            name: as there.
            progress: as there, with the bytes of all shards.
            manifest: the path of a file on the caller's disk that says which checkpoints belong together. None: it is not written.

        Raises:
            ServerUnavailableError: a shard is lost, also with ``on_loss="degrade"``: its rows would be missing.
        """
        with reporting(progress, "checkpoint", "bytes") as told:
            return checkpoint_shards(self._shards, name, told, manifest)

    def save(self, path: str | os.PathLike[str]) -> None:
        """As in `BaseReplayBuffer`, for each shard."""
        save_shards(self._shards, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """As in `BaseReplayBuffer`. It looks at all shards before it sets one back; the file must be of the same shards."""
        load_shards(self._shards, path)
        self._begin_anew()
        self._shards.learn()

    def _rewind(self, metadata: Metadata) -> None:
        raise InvalidArgumentError("the file is of one buffer, and says nothing of several shards")

    def _begin_anew(self) -> None:
        """Forgets what is known of earlier rows: the shards do not hold them any more. Open epochs over them find it out at their next batch."""
        self._iterator = None
        self._shards.times_emptied += 1
        self._totals.clear()
        self._inserts.forget()

    def close(self) -> None:
        """Closes the connections to all shards. Closing twice is allowed. The tables stay."""
        self._iterator = None
        self._writer_watch.close()
        self._shards.close()
        self._inserts.close()


def _copied(
    kind: type[ShardedReplayBuffer],
    device: torch.device,
    seed: int | None,
    directory: Directory,
    opening: Opening,
    placement: str,
    places: Sequence[ShardPlace],
    used: int,
) -> ShardedReplayBuffer:
    """The copy of a buffer that was pickled or copied."""
    buffer = kind.__new__(kind)
    BaseReplayBuffer.__init__(buffer, device, seed)
    buffer._open(ShardSet(directory, opening, places, used), opening, placement)
    return buffer
