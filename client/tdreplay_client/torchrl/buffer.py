"""The buffer that TorchRL's collectors, trainers and scripts take for their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from typing_extensions import Self

from tdreplay.errors import FieldNotFoundError, InvalidArgumentError, MissingRowsError, UnimplementedError
from tdreplay.limits import check_batch_size, check_flag, check_number, check_whole
from tdreplay.priorities import checked_priorities
from tdreplay.system_fields import INDEX, ROW_ID
from tdreplay.torchrl_parts import IN_PLACE, PARTS, Places, first_of_each, refusing, unchanged
from tdreplay_client.buffer import MAX_PREFETCH, RemoteReplayBuffer
from tdreplay_client.torchrl.parts import STATE, TableSampler, TableStorage, TableWriter

__all__ = ["RemoteTensorDictReplayBuffer"]

TRANSFORMS = "`dumps` writes no pickle, and these transforms have tensors: keep `transform.state_dict()` beside it"
FILE = "tdreplay.json"


class RemoteTensorDictReplayBuffer(TensorDictReplayBuffer):
    """A `torchrl.data.TensorDictReplayBuffer` whose rows are those of a table of a server.

    TorchRL's collectors, trainers and scripts take it for their own. `add`, `extend`, `sample`, `len`, iteration, indexing, `empty`, `write_count`,
    transforms and `query` do what TorchRL says, over the network: rows are stored once and as durable as the server says, and drawn as the table's
    sampler says. A batch has one more field, ``row_id``, by which priorities are updated.

    It can be pickled and copied, as the collectors of several processes do it: each copy opens a connection of its own. All methods may be called
    from several threads, and no thread waits for the call of another one.

    What would change stored rows in place, or take the parts apart, is an UnimplementedError with the reason.

    Example:
        >>> with RemoteTensorDictReplayBuffer("127.0.0.1:50051", table="steps", buffer_size=100_000, batch_size=256) as replay:
        ...     collector = Collector(env, policy, frames_per_batch=200, total_frames=10_000, replay_buffer=replay)
        ...     for _ in collector:
        ...         loss = loss_module(replay.sample())

    Args:
        buffer: A `RemoteReplayBuffer`, which its opener closes; or the address of a server, for a buffer that `close` closes with this one. None: at
            the address that the environment or the ``profile`` among the options says.
        batch_size: The rows of each batch of `sample` and of the iteration.
        prefetch: How many batches are on their way while one is used: they are drawn before they are asked for. None: none is, and a batch is of the
            moment of its call. Batches of another size than `batch_size` are never read ahead.
        transform: What is done to rows; see TorchRL.
        priority_key: The field that has the priorities, in `update_tensordict_priority` and, where it is there, in `extend`. Where it has several
            values a row, the largest counts.
        beta: How much ``priority_weight`` corrects, from 0 up; see `importance_weights`. ``sampler.beta`` can be changed, as by a scheduler.
        eps: What is added to each priority: a row of priority 0 would not be drawn any more.
        collate_fn: is given each batch. None: batches stay as they are.
        generator: Makes batches reproducible: it gives a seed for each batch, or for each stream of batches that are read ahead. None: the buffer's
            own seed does, if it has one. ``torch.manual_seed`` has no influence: rows are drawn by the server.
        wait: Whether `sample` waits for the first row of an empty table, as long as the buffer's timeout. False: an EmptyTableError at once.
        **options: For the buffer that is opened at an address: ``table``, ``buffer_size``, ``device`` and so on; see `RemoteReplayBuffer`.

    Raises:
        InvalidArgumentError: An argument breaks its rule.
    """

    def __init__(
        self,
        buffer: RemoteReplayBuffer | str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        prefetch: SupportsIndex | None = None,
        transform: Any = None,
        priority_key: str = "td_error",
        beta: float = 0.4,
        eps: float = 1e-8,
        collate_fn: Callable[[Any], Any] | None = None,
        generator: torch.Generator | None = None,
        wait: bool = False,
        **options: Any,
    ) -> None:
        size = None if batch_size is None else check_batch_size(batch_size)
        ahead = check_whole(prefetch or 0, "prefetch", 0, MAX_PREFETCH)
        if ahead and size is None:
            raise InvalidArgumentError(f"prefetch ({ahead}) needs a batch_size: batches of one size are read ahead")
        if options and isinstance(buffer, RemoteReplayBuffer):
            raise InvalidArgumentError(f"{', '.join(options)} belong to a buffer that is opened at an address, and this one is open")
        waits = check_flag(wait, "wait")
        self._owned = not isinstance(buffer, RemoteReplayBuffer)
        self._buffer = buffer if isinstance(buffer, RemoteReplayBuffer) else RemoteReplayBuffer(buffer, **options)
        self._places = Places(self._buffer)
        super().__init__(
            storage=TableStorage(self._buffer),
            writer=TableWriter(self._buffer, self._places),
            sampler=TableSampler(self._buffer, self._places, size, ahead, wait=waits, beta=check_number(beta, "beta", 0)),
            batch_size=size,
            transform=transform,
            priority_key=priority_key,
            collate_fn=collate_fn or unchanged,
            generator=generator,
        )
        # The server has locks, and a thread that waits for rows must not stop the one that brings them.
        self._replay_lock = nullcontext()
        self.shared = True
        self._eps = check_number(eps, "eps", 0)
        self._arguments = {"batch_size": size, "prefetch": ahead, "priority_key": priority_key, "eps": eps, "collate_fn": collate_fn, "wait": waits}

    def __reduce__(self) -> tuple[Any, ...]:
        """The buffer, which opens a connection of its own there, and the arguments. `empty` is counted from where it was."""
        generator = None if self._rng is None else (self._rng.get_state(), self._rng.device)
        arguments = {**self._arguments, "beta": self._sampler.beta, "transform": self._transform}
        return _reopened, (type(self), self._buffer, arguments, generator), self._writer.not_counted

    def __setstate__(self, not_counted: int) -> None:
        self._writer.not_counted = not_counted
        self._owned = True  # The copy's connection is its own.

    def __copy__(self) -> Self:
        return deepcopy(self)  # With a connection of its own, as every copy.

    @property
    def buffer(self) -> RemoteReplayBuffer:
        """The same rows with the methods of tdreplay."""
        return self._buffer

    def share(self, shared: bool = True) -> Self:
        """Does nothing: any process may use a copy of it."""
        self._write_lock = nullcontext()
        return self

    def set_rng(self, generator: torch.Generator | None) -> None:
        """Another generator. Batches that were read ahead are forgotten."""
        super().set_rng(generator)
        self._sampler.begin_anew()

    # -- priorities ---------------------------------------------------------------------------------------------------------------------------

    def add(self, data: TensorDictBase) -> int:
        """Stores a row, and gives its slot. It gets the priority that it has, and else the highest that the table has seen."""
        self._given_priorities(data)
        index: int = super().add(data)
        return index

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> torch.Tensor:
        """Stores rows, and gives their slots, int64 of shape [n]. They get the priorities that they have, and else the highest so far.

        Raises:
            InvalidArgumentError: A priority is negative, NaN or infinite. No row is stored.
        """
        given = update_priority is not False and self._given_priorities(tensordicts) is not None and self._sampler.prioritized
        index: torch.Tensor = super().extend(tensordicts, update_priority=given)
        return index

    def update_priority(self, index: Any, priority: Any) -> None:
        """Gives rows other priorities, by their slots: those rows that `sample` or `extend` gave with these slots.

        They may be overwritten meanwhile: then other rows have their slots, and do not change. The tensors that were given are exact. In a copy or a
        part of one, a slot means the row that was given with it last; `update_tensordict_priority`, which goes by ``row_id``, is exact there, too.

        Args:
            index: A slot, or some, n of them; also the tuple that TorchRL makes of them.
            priority: Numbers from 0 up: one for all, or of shape [n] or [n, ...], of which the largest of each row counts.

        Raises:
            NoPrioritiesError: The rows of this table have no priorities.
            InvalidArgumentError: A priority is negative, NaN or infinite. None changes.
            SlotIndexError: A slot holds no row.
        """
        slots = torch.as_tensor(index[0] if isinstance(index, tuple) else index)
        row_ids = self._places.row_ids(slots)
        self._sampler.update(torch.from_numpy(row_ids), self._raised(priority, len(row_ids)))

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Gives the rows of a batch the priorities of its field `priority_key`, by its ``row_id``. Rows that were overwritten meanwhile are left out.

        Where the rows of this table have no priorities, it does nothing, as in TorchRL, and so does a single row without that field. With `prefetch`
        it does not wait until the server has them.

        Raises:
            FieldNotFoundError: The batch has no such field.
            InvalidArgumentError: A priority is negative, NaN or infinite. None changes.
        """
        priorities = self._given_priorities(data)
        if priorities is None and data.ndim and self._sampler.prioritized:
            raise FieldNotFoundError(f"the batch has no field {self.priority_key!r}, which has the priorities: priority_key may name another one")
        if priorities is None or not self._sampler.prioritized:
            return
        row_ids = data.get(ROW_ID.name, None)
        if row_ids is None:
            index = data[INDEX.name]
            row_ids = torch.from_numpy(self._places.row_ids(index if index.ndim < 2 else first_of_each(index)))
        self._sampler.update(first_of_each(row_ids) if row_ids.ndim else row_ids.reshape(1), priorities)

    def _given_priorities(self, data: TensorDictBase) -> npt.NDArray[np.float64] | None:
        """The priorities that rows have in their field `priority_key`, float64 of shape [n], raised by `eps`. None: they have no such field."""
        priority = data.get(self.priority_key, None)
        return None if priority is None else self._raised(priority, len(data) if data.ndim else 1)

    def _raised(self, priority: Any, rows: int) -> npt.NDArray[np.float64]:
        values = torch.as_tensor(priority).detach().double()
        largest = values.reshape(rows, -1).amax(1) if values.numel() > 1 and rows else values.reshape(-1)
        return checked_priorities(largest if values.numel() > 1 else largest.expand(rows), rows) + self._eps

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the buffer stands, without its rows: they are on the server, and stay there while a trainer is saved and started again."""
        state = self._buffer.state()
        stands = {"table": self._buffer.table, "insert_count": state.insert_count, "not_counted": self._writer.not_counted}
        return {**stands, "batch_size": self._batch_size, "transforms": self._transform.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made. It changes no row: what others have stored since then stays.

        Raises:
            MissingRowsError: The table has seen fewer rows than then: it is another one, or it lost them.
        """
        state = self._buffer.state()
        if state.insert_count < state_dict["insert_count"]:
            raise MissingRowsError(
                f"table {self._buffer.table!r} has seen {state.insert_count} rows, and table {state_dict['table']!r} had seen "
                f"{state_dict['insert_count']} when the state was made: it is another one, or it lost them"
            )
        self._writer.not_counted = state_dict["not_counted"]
        self._batch_size = state_dict["batch_size"]
        self._transform.load_state_dict(state_dict["transforms"])

    def dumps(self, path: str | Path) -> None:
        """Writes `state_dict` as JSON into the directory `path`, which is made where it is not there.

        Raises:
            UnimplementedError: The transforms have a state.
        """
        state = self.state_dict()
        if state.pop("transforms"):
            raise UnimplementedError(TRANSFORMS)
        Path(path).mkdir(exist_ok=True)
        (Path(path) / FILE).write_text(json.dumps(state))

    def loads(self, path: str | Path) -> None:
        """As `load_state_dict`, with what `dumps` wrote."""
        self.load_state_dict({**json.loads((Path(path) / FILE).read_text()), "transforms": {}})

    save = dump = dumps
    load = loads

    # -- the end ------------------------------------------------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = None) -> None:
        """As `close`."""
        super().shutdown(timeout)
        self._sampler.begin_anew()
        if self._owned:
            self._buffer.close()

    def close(self) -> None:
        """Ends the batches that are read ahead, and closes the buffer where it was opened here. Closing twice is allowed. The table stays."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # -- what it refuses ----------------------------------------------------------------------------------------------------------------------

    register_save_hook = register_load_hook = refusing(STATE)
    __setitem__ = write_all = set_ = set_at_ = update_ = update_if_present = submit_update_if_present = refusing(IN_PLACE)
    set_storage = set_writer = set_sampler = refusing(PARTS)


def _reopened(
    kind: type[RemoteTensorDictReplayBuffer],
    buffer: RemoteReplayBuffer,
    arguments: dict[str, Any],
    generator: tuple[torch.Tensor, torch.device] | None,
) -> RemoteTensorDictReplayBuffer:
    """The copy of a buffer that was pickled or copied."""
    rng = None
    if generator is not None:
        rng = torch.Generator(device=generator[1])
        rng.set_state(generator[0])
    return kind(buffer, generator=rng, **arguments)
