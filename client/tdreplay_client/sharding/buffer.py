"""One replay buffer over the tables of several servers: the API of `tdreplay.api`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer, Checkpoint
from tdreplay.description_messages import description_from_message
from tdreplay.epochs import EpochQuery
from tdreplay.errors import ServerUnavailableError
from tdreplay.limits import DEFAULT_TABLE, DEFAULT_TIMEOUT, check_choice, check_flag, check_seconds
from tdreplay.metadata import Metadata
from tdreplay.priorities import Updated
from tdreplay.progress import Shown
from tdreplay.rate_limiters import RateLimiter
from tdreplay.rows import Given, Row
from tdreplay.samplers import Sampler
from tdreplay.selecting import Slots
from tdreplay.state import State
from tdreplay.table_config import TableRequest
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import Episode
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView, View
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.description import ShardDescription, ShardedDescription, whole_description, whole_state
from tdreplay_client.sharding.epochs import ShardedEpochs, plan_over
from tdreplay_client.sharding.members import Member, check_members
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard, ShardPlace
from tdreplay_client.sharding.shard_set import Directory, FixedDirectory, ShardSet
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_client.sharding.shares import share_of
from tdreplay_client.sharding.slots import whole_slots
from tdreplay_client.transport.access import TLS
from tdreplay_client.transport.targets import found_access

__all__ = ["ShardedReplayBuffer"]

ON_LOSS = ("raise", "degrade")
PLACEMENTS = ("fill", "hash", "local")
T = TypeVar("T")


class ShardedReplayBuffer(BaseReplayBuffer):
    """One buffer over the tables of several servers. See `BaseReplayBuffer` for its methods, and `RemoteReplayBuffer` for what is not said here.

    Args:
        addresses: those of the shards, in order: the first one is shard 0. Or a `Directory`, which says where the shards are, as that of a
            `ReplayCluster` does.
        on_loss: what becomes of reads while a shard does not answer. "raise": they wait for it as long as `timeout`, and then raise
            `ServerUnavailableError`. "degrade": within two seconds they go on with the other shards, whose rows alone are drawn. It is said in the
            log, in `describe` and in the batch: its field ``lost_shards`` (int64 of shape [n]) is the number of shards that were not drawn from.
        placement: which shard a row goes to. "fill": the one with the most room. "hash": a writer's rows all go to the shard that its id says.
            "local": the shard on this host, where there is one. A writer, and so an episode, stays on one shard.

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
        self._request = TableRequest.of(buffer_size, storing_device, sampler, rate_limiter, max_times_sampled, trajectories, table)
        self._on_loss, self._placement = check_choice(on_loss, "on_loss", ON_LOSS), check_choice(placement, "placement", PLACEMENTS)
        self._timeout = check_seconds(timeout, "timeout")
        self._transport, self._cast = transport, check_flag(cast, "cast")
        self._access: dict[str, Any] = {"tls": tls, "token": token, "profile": profile}
        self._transfer = DeviceTransfer(self._device)
        directory = FixedDirectory(addresses) if isinstance(addresses, Iterable) else addresses
        self._shards = ShardSet(directory, self._opened)
        try:
            self._agree()
        except BaseException:
            self._shards.close()
            raise

    def _opened(self, place: ShardPlace, position: int, shards: int) -> Shard:
        request, access = share_of(self._request, position, shards), found_access(place.address, **self._access)

        def table(timeout: float) -> ShardTable:
            return ShardTable.unconnected(place.address, request, timeout, self._transport, self._cast, access)

        writes = table(self._timeout)
        return Shard(place, writes, table(min(LOSS_SECONDS, self._timeout)) if self._on_loss == "degrade" else writes)

    def _agree(self) -> None:
        """Connects to all shards, and checks that they are one buffer. Those that are lost are left out where the buffer goes on without them.

        Raises:
            ServerUnavailableError: none is there, or one is not.
        """
        found = self._on_those_there(lambda shard: _member(shard, shard.asked(ShardTable.connect)))
        check_members([member for _, member in found])
        for shard, member in found:
            shard.generation_id = member.description.generation_id

    def _on_those_there(self, call: Callable[[Shard], T]) -> list[tuple[Shard, T]]:
        """What a call gives for each shard that answers.

        Raises:
            ServerUnavailableError: none of them does, or one does not, and the buffer does not go on without it.
        """
        shards = list(self._shards)
        if self._on_loss == "raise":
            return list(zip(shards, self._shards.each(call), strict=True))
        found = list(zip(shards, self._shards.tried(call), strict=True))
        there = [(shard, answer) for shard, answer in found if not isinstance(answer, ServerUnavailableError)]
        if not there:
            raise next(answer for _, answer in found if isinstance(answer, ServerUnavailableError))
        return there

    @property
    def addresses(self) -> list[str]:
        """The addresses of the shards, by number."""
        return [shard.place.address for shard in self._shards]

    @property
    def table(self) -> str:
        """The table's name, which is the same on all shards."""
        return self._request.name

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def add(self, row: Row, *, priority: float | None = None) -> None:
        raise NotImplementedError

    def add_batch(self, batch: Row, *, priorities: Any = None) -> None:
        raise NotImplementedError

    def insert(self, rows: Given, *, writer_id: str = "") -> npt.NDArray[np.int64]:
        raise NotImplementedError

    def trajectory_writer(self, n_envs: SupportsIndex = 1, *, autoreset: Any = None) -> TrajectoryWriter:
        raise NotImplementedError

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
        raise NotImplementedError

    def update_priorities(self, row_ids: Any, priorities: Any) -> Updated:
        raise NotImplementedError

    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool = False) -> TensorDict:
        raise NotImplementedError

    def sample_all(self, *, progress: Shown = None) -> TensorDict:
        raise NotImplementedError

    def episodes(self) -> list[Episode]:
        raise NotImplementedError

    def _episode_rows(self, episode_id: int) -> tuple[TensorDict, bool]:
        raise NotImplementedError

    def _trajectories(self) -> Trajectories | Literal[False]:
        raise NotImplementedError

    def _open_epochs(self, query: EpochQuery, seed: int | None, view: TableView | None) -> ShardedEpochs:
        answers = self._on_those_there(lambda shard: shard.asked(ShardTable.answer))
        plan = plan_over(query, self.table, answers, seed)
        return ShardedEpochs(self._shards, plan, self._transfer, self._timeout if self._on_loss == "degrade" else None, view)

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def describe(self) -> ShardedDescription:
        """As in `BaseReplayBuffer`: sums, and by shard. Each shard's part is of its own moment."""
        found = dict(self._on_those_there(lambda shard: _member(shard, shard.asked(ShardTable.answer)).description))
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
        found = self._on_those_there(lambda shard: shard.asked(ShardTable.state))
        return whole_state([state for _, state in found], self._pointer(found))

    def _pointer(self, states: Sequence[tuple[Shard, State]]) -> int:
        """The slot of the next row, if it goes where the most room is."""
        shards = len(self._shards)
        slots: list[tuple[int, int]] = [
            (state.size // state.buffer_size, whole_slots(state.pointer, self._place(shard), shards)) for shard, state in states
        ]
        return min(slots)[1]

    def _place(self, shard: Shard) -> int:
        return list(self._shards).index(shard)

    @property
    def storing_device(self) -> torch.device:
        return self._shards[0].reads.storing_device

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        raise NotImplementedError

    def checkpoint(self, name: str, *, progress: Shown = None) -> Checkpoint:
        raise NotImplementedError

    def _rewind(self, metadata: Metadata) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._iterator = None
        self._shards.close()


def _member(shard: Shard, answer: pb.DescribeResponse) -> Member:
    """What a server says of itself as a shard."""
    description = description_from_message(answer, shard.writes.table)
    return Member(shard.place, description, answer.cluster, answer.shard if answer.HasField("shard") else None)
