"""Batches that lie in memory of this process, to which each shard writes its rows itself: nothing is copied here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.block import Block, Layout
from tdreplay.errors import RowIdError
from tdreplay.schema import Columns
from tdreplay.shard_ids import SHARD_ROW_BITS
from tdreplay.system_fields import INDEX, MIN_PROBABILITY, PROBABILITY, ROW_ID, TABLE_SIZE
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.placed_call import PlacedCall
from tdreplay_client.sharding.mixing import Places, drawn_places
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.supply import Supply
from tdreplay_client.transport.batch_memory import BatchMemory

__all__ = ["Giver", "Whole", "WholeBatch", "WholeBatches"]


@dataclass(frozen=True)
class Giver:
    """A shard that gives rows of batches.

    Attributes:
        supply: What it gives.
        call: Over which its rows are asked for.
        layout: How a batch lies in its slot.
        place: Of the shard among those of the buffer.
    """

    supply: Supply
    call: PlacedCall
    layout: Layout
    place: int


@dataclass(frozen=True)
class Whole:
    """What is drawn from.

    Attributes:
        givers: The shards, one at least.
        masses: Of each of them, in proportion to the others'.
        shards: How many shards the buffer has: a slot depends on it.
        size: The number of rows of all of them.
        least: The smallest probability of any of these.
        lost: How many shards are not drawn from.
    """

    givers: Sequence[Giver]
    masses: npt.NDArray[np.float64]
    shards: int
    size: int
    least: float
    lost: int


@dataclass(frozen=True)
class WholeBatch:
    """A batch that was asked for.

    Attributes:
        memory: Where it lies.
        slot: In which slot.
        of: What it was drawn from.
        places: Of each shard, which rows of the batch it gives.
        parts: Of each shard, how many parts of its call are there once these rows are.
    """

    memory: BatchMemory
    slot: int
    of: Whole
    places: Sequence[Places]
    parts: Sequence[int]

    @property
    def needed(self) -> Iterator[tuple[Supply, int]]:
        """Of each shard, how many parts of its call are there once its rows are."""
        return ((giver.supply, parts) for giver, parts in zip(self.of.givers, self.parts, strict=True))

    @property
    def is_stale(self) -> bool:
        """Whether a shard's call has ended since: its rows will not come."""
        return any(giver.supply.call is not giver.call for giver in self.of.givers)

    def made(self, transfer: DeviceTransfer) -> TensorDict:
        """The batch on its device. All of its rows are there.

        Raises:
            RowIdError: a shard gave an id that has no room.
        """
        layout, memory = self.of.givers[0].layout, self.memory.borrowed(self.slot)
        columns = self._whole(Block(layout, memory).columns)
        batch = transfer.bring(columns, layout.batch_shape, layout.dim_names).take()
        if transfer.on_host and not self.memory.lend(self.slot):
            return batch.clone()
        return batch

    def _whole(self, columns: dict[str, torch.Tensor]) -> Columns:
        """The columns with the ids, slots and probabilities of the whole buffer."""
        of = self.of
        chosen = np.zeros(len(next(iter(columns.values()))), np.intp)
        for giver, places in enumerate(self.places):
            chosen[places] = giver
        if ROW_ID.name in columns:
            ids = columns[ROW_ID.name].numpy()
            if int(ids.max()) >> SHARD_ROW_BITS:
                raise RowIdError(f"a shard gave more row ids than fit: 2^{SHARD_ROW_BITS}")
            ids += self._of_each(lambda giver: giver.supply.shard.number << SHARD_ROW_BITS)[chosen]
        if INDEX.name in columns:
            slots = columns[INDEX.name].numpy()
            slots *= of.shards
            slots += self._of_each(lambda giver: giver.place)[chosen]
        if PROBABILITY.name not in columns or not any(
            giver.call.is_weighed for giver in of.givers
        ):  # Then these are fields of the user's, if they are there.
            return columns
        probabilities = columns[PROBABILITY.name].numpy()
        probabilities *= (of.masses / of.masses.sum())[chosen]
        said = ((TABLE_SIZE, of.size), (MIN_PROBABILITY, of.least))
        return columns | {field.name: torch.full((len(chosen),), value, dtype=field.dtype, device="cpu") for field, value in said}

    def _of_each(self, value: Callable[[Giver], int]) -> npt.NDArray[Any]:
        return np.array([value(giver) for giver in self.of.givers], np.int64)


class WholeBatches:
    """The batches of a stream that were asked for, in order. One thread uses them.

    A server that was lost while it wrote may go on, and still write. So memory to which one was to write that did not answer is not used again: a
    call that ends takes all batches with it that were asked for, and the calls of all shards begin anew with other memory.

    Args:
        rows: Rows of a batch.
        streams: Opens the calls, and has the memory.
    """

    def __init__(self, rows: int, streams: PullStreams) -> None:
        self._rows, self._streams = rows, streams
        self._rng = np.random.Generator(np.random.SFC64())
        self._asked: deque[WholeBatch] = deque()

    def check(self, supplies: Iterable[Supply]) -> None:
        """Begins anew where a call has ended since batches were asked for, and ends all calls where not every shard can write to this memory."""
        memory = self._streams.memory
        used_up = memory is not None and not self._asked and not memory.free  # An interrupt may have come while slots were taken.
        if used_up or any(batch.is_stale for batch in self._asked):
            self._asked.clear()
            self._streams.forget()
        for supply in supplies:
            if supply.call is not None and supply.call.memory is not self._streams.memory:
                supply.drop()

    def ask(self, of: Whole) -> WholeBatch | None:
        """Asks for as many batches as there is room for, and gives the one that is next. None: not all shards write to the memory of now."""
        memory = self._streams.memory
        if memory is None or any(giver.call.memory is not memory for giver in of.givers):
            return None
        slots = [memory.take() for _ in range(self._room(memory))]
        drawn = [drawn_places(of.masses, self._rng.random(self._rows)) for _ in slots]
        counts = np.array([[len(places) > 0 for places in batch] for batch in drawn], np.int64).reshape(len(slots), len(of.givers))
        parts = counts.cumsum(axis=0) + [giver.call.asked for giver in of.givers]
        for number, giver in enumerate(of.givers):
            wanted = [(slot, batch[number]) for slot, batch in zip(slots, drawn, strict=True) if len(batch[number])]
            if wanted:
                giver.call.ask(wanted)
        self._asked.extend(WholeBatch(memory, slot, of, places, row) for slot, places, row in zip(slots, drawn, parts.tolist(), strict=True))
        return self._asked[0]

    def _room(self, memory: BatchMemory) -> int:
        """How many batches are to be asked for now. They are asked for together: each message costs."""
        window = min(self._streams.prefetch, memory.slots - memory.reserve)
        room = min(window - len(self._asked), memory.free)
        return room if room >= max(1, window // 2) or not self._asked else 0

    def take(self) -> WholeBatch:
        """The batch that is next."""
        return self._asked.popleft()
