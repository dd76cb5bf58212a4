"""The API of a replay buffer, the same in process and over the wire."""

from __future__ import annotations

import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.devices import check_device
from tdreplay.epochs import ON_OVERWRITE, EpochQuery, Epochs
from tdreplay.errors import InvalidArgumentError, NoTrajectoriesError
from tdreplay.limits import DEFAULT_TIMEOUT, check_batch_size, check_choice, check_flag, check_whole
from tdreplay.metadata import Metadata
from tdreplay.priorities import Updated
from tdreplay.progress import Progress, Shown, reports_to
from tdreplay.row_wait import RowWait
from tdreplay.rows import Given, Row
from tdreplay.seeds import derived_seed
from tdreplay.selecting import Fields, Index, Slots, as_fields, as_slots, shaped
from tdreplay.state import State
from tdreplay.table_description import TableDescription
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import Episode
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay.views import TableView, View, check_view
from tdreplay.whole_episodes import whole_episode

__all__ = ["BaseReplayBuffer", "Checkpoint", "Progress", "State", "TableDescription"]


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint, on the disk.

    Attributes:
        path: directory of the checkpoint, on the machine that stores the rows.
        rows: number of rows in the checkpoint.
        write_count: the buffer's `write_count` at the moment that the checkpoint shows. Its rows are the ids ``[write_count - rows, write_count)``.
        bytes: size of these rows.
    """

    path: str
    rows: int
    write_count: int
    bytes: int


class BaseReplayBuffer(ABC):
    """A ring of ``buffer_size`` rows, each a TensorDict of the same fields.

    The first rows fix the fields' names, dtypes and shapes. Rows that differ are refused with `SchemaError` and change nothing.

    Every batch that a method returns lies on `device` and owns its memory. It has two more fields, both int64 of shape [n]: ``index``, the slots of
    its rows, and ``row_id``, their numbers since the buffer began. If rows are themselves batches, both are expanded to the whole batch size.

    All methods may be called from several threads.

    Args:
        device: device of the batches.
        seed: makes random draws reproducible, from 0 to 2^63 - 1: call number k of `sample_batch` gives batch number k of the seed. Two buffers of
            the same seed give the same batches as long as they hold the same rows in the same order. None: batches differ in every run.
    """

    def __init__(self, device: torch.device | str, seed: SupportsIndex | None = None) -> None:
        self._device = check_device(device, "device")
        self._seed = None if seed is None else check_whole(seed, "seed", 0)
        self._batches, self._orders = itertools.count(), itertools.count()  # Numbers of the seed's draws. `next` is atomic.
        self._iterator: Iterator[TensorDict] | None = None
        self._last_view: TableView | None = None

    # -- what an implementation provides ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, row: Row, *, priority: float | None = None) -> None:
        """Stores one row: a TensorDict without a row dimension, or a dict (nested or not) of tensors, arrays, numbers and lists.

        Its memory is copied. Which values fit a field:

        - A tensor or an array has a dtype. It must be the field's.
        - A number takes the field's dtype if it is in its range, and the field's kind is its own or a wider one. The kinds, from narrow to wide, are
          whole, real and complex numbers; a bool fits only a field of bools.
        - With ``cast=True`` the buffer converts any dtype if every value keeps its meaning: bools are 0 and 1, a whole number stays whole, and a
          finite number stays finite. Dimensions of 1 may then differ, too.

        ``index`` and ``row_id`` of a sampled batch are left out, and so is what says how it was drawn, unless the buffer's rows have such fields.

        Args:
            row: the row.
            priority: its priority, a number from 0 up. None: the highest that the buffer has seen so far.

        Raises:
            InvalidArgumentError: the priority is negative, NaN or infinite.
            NoPrioritiesError: a priority is given, and the rows of this buffer have none.
            SchemaError: the row differs from those before it, a number does not fit, or something would be lost, such as an inner batch size.
            CodecError: a field cannot be stored: non-tensor data, a key with '.', an unknown dtype.
        """

    @abstractmethod
    def add_batch(self, batch: Row, *, priorities: Any = None) -> None:
        """Stores n rows: a TensorDict of batch size [n, ...], or a dict whose values have a first dimension of n. Its memory is copied.

        If there are more than `buffer_size` rows, the last ones stay. The values must fit as in `add`.

        Args:
            batch: the rows.
            priorities: their priorities, as in `update_priorities`. None: the highest that the buffer has seen so far.

        Raises:
            NoPrioritiesError: priorities are given, and the rows of this buffer have none.
            SchemaError: the rows differ from those before them, or one of the other reasons of `add`.
            CodecError: a field cannot be stored: non-tensor data, a key with '.', an unknown dtype.
            InvalidArgumentError: there is no batch dimension, or no row, or a priority breaks its rule.
        """

    @abstractmethod
    def insert(self, rows: Given, *, writer_id: str = "") -> npt.NDArray[np.int64]:
        """Stores rows as `add` and `add_batch` do, and gives their row ids, int64 of shape [n] in the order of the rows.

        Args:
            rows: What `tdreplay.rows.given_row` makes of a row, or `given_rows` of a batch.
            writer_id: 1 to 64 printable ASCII characters: who writes the rows. Whoever goes on with an episode that another process began has to be
                the same writer. One thread of one process at a time may use it. '': nobody in particular.
        """

    @abstractmethod
    def trajectory_writer(self, n_envs: SupportsIndex = 1, *, autoreset: Any = None) -> TrajectoryWriter:
        """A writer of episodes, for a table of trajectories: ``with buffer.trajectory_writer() as writer: writer.append(step, final=next_obs)``.

        Args:
            n_envs: How many environments take a step together. From 2 on `append` takes values with a first dimension of n_envs.
            autoreset: How the environments begin again after an end. "same_step", "disabled": each appended step is one. "next_step": the step after
                an end resets the environment, and is none; it is left out. Vector environments of Gymnasium 1 do so by default. Gymnasium's
                ``AutoresetMode`` says the same. None: each appended step is one, and one that looks like such a reset gives a UserWarning, once.

        Raises:
            NoTrajectoriesError: the rows of this buffer are no steps.
            InvalidArgumentError: an argument breaks its rule.
        """

    @abstractmethod
    def sample_batch(
        self,
        batch_size: SupportsIndex,
        *,
        seed: SupportsIndex | None = None,
        wait: bool = False,
        uniform: bool = False,
        view: View | None = None,
    ) -> TensorDict:
        """`batch_size` rows that the buffer's sampler chooses: a TensorDict of batch size [batch_size, ...].

        The sampler is `Uniform` unless the buffer was made with another one: each row is equally probable, with replacement. A batch counts as drawn
        when it is returned. It waits for the rate limiter, and for rows where they leave: a remote buffer as long as its `timeout`, one in process
        30 s.

        If the rows have priorities, a batch that is not `uniform` has four more fields of shape [n]. ``probability`` (float64) is how probable each
        row was in this draw, and ``priority`` (float64) its priority. ``table_size`` (int64) is the number of rows among which were drawn, and
        ``min_probability`` (float64) the smallest probability above 0 that one of them had: both are the same in all rows. `importance_weights`
        makes weights of them.

        Args:
            batch_size: number of rows.
            seed: the same seed gives the same rows as long as the buffer holds the same ones. None: the buffer's own seed, if it has one.
            wait: whether an empty buffer waits for its first row, as long as for the rate limiter.
            uniform: whether all rows are equally probable, with replacement, whatever the sampler is.
            view: what the batch is made of the steps around each row, of a table with trajectories: `Transitions`, whose batch size is [batch_size],
                or `Sequences`, whose batch size is [batch_size, T]. Only steps of which this can be made are drawn. None: the rows as they are.

        Raises:
            EmptyTableError: there is no row, or none of which the view can be made.
            NoTrajectoriesError: a view is given, and the table was made without trajectories.
            RateLimitedError: the time is over; the message says what was waited for.
            FailedPreconditionError: uniform, and the rows of this buffer leave when they were drawn.
            FieldNotFoundError: the view needs a field that is not there.
            InvalidArgumentError: batch_size is below 1 or above `MAX_BATCH_SIZE`, or seed is out of its range. Or the batch is larger than the rate
                limiter can ever let through. Or the view is none, or needs more steps than the buffer can hold.
        """

    @abstractmethod
    def update_priorities(self, row_ids: Any, priorities: Any) -> Updated:
        """Gives rows other priorities, by row id: ``batch["row_id"]`` of a batch.

        A row that was overwritten meanwhile is stale: it is counted, and no other row changes.

        Of equal row ids the last one counts. Many thousand rows travel in several parts, and each part is changed as a whole.

        Args:
            row_ids: a tensor, an array or a list of integers, n of them.
            priorities: n numbers from 0 up, in the same forms, or one number for all. A row of priority 0 is not drawn while others have more.

        Raises:
            NoPrioritiesError: the rows of this buffer have no priorities.
            InvalidArgumentError: a priority is negative, NaN or infinite, or there is another number of them. No priority changes.
            RowIdError: a row id was never given. No priority changes.
        """

    @abstractmethod
    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool = False) -> TensorDict:
        """The named fields of the rows in `slots`: a TensorDict of batch size [n, ...]. None: all fields.

        `view`: what is made of their windows. `priorities`: whether they have the field ``priority``.
        """

    @abstractmethod
    def _trajectories(self) -> Trajectories | Literal[False]:
        """What the table knows of the episodes that its rows belong to; False: they are no steps."""

    @abstractmethod
    def sample_all(self, *, progress: Shown = None) -> TensorDict:
        """Every stored row, in slot order.

        Args:
            progress: True draws a bar on standard error, where that is a terminal or a notebook. A function is called with the rows that came so far,
                and all of them; a call that is repeated after a lost connection begins again at 0.

        Raises:
            EmptyTableError: there is no row.
            InvalidArgumentError: progress is none of these.
        """

    @abstractmethod
    def episodes(self) -> list[Episode]:
        """The episodes of which a step is stored, as they are at one moment, by ascending first row.

        Raises:
            NoTrajectoriesError: the table was made without trajectories.
        """

    @abstractmethod
    def _episode_rows(self, episode_id: int) -> tuple[TensorDict, bool]:
        """The rows of an episode in order, and whether the last one is the final observation."""

    @abstractmethod
    def state(self) -> State:
        """The buffer's state. All of its values are of the same moment."""

    @abstractmethod
    def describe(self) -> TableDescription:
        """The buffer's state, what it was made with, and how it is used. All of it is of the same moment."""

    @abstractmethod
    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """Forgets all rows and their schema, and takes a new capacity if one is given. Row ids go on rising; the next row lies in slot 0."""

    @abstractmethod
    def checkpoint(self, name: str, *, progress: Shown = None) -> Checkpoint:
        """Writes all rows, as they are at one moment, to a directory beside the data, and returns when they are on the disk.

        Other calls go on meanwhile. The checkpoint appears whole and replaces one of the same name in one step; if the call fails, no new one
        appears. The command ``tdreplay-server restore`` makes a table of it. (`save` writes no rows: it only notes where the buffer stands.)

        Args:
            name: 1 to 64 letters, digits, '_' or '-'.
            progress: True draws a bar on standard error, where that is a terminal or a notebook. A function is called now and then, from this thread,
                with the bytes that are written so far, and all of them.

        Raises:
            FailedPreconditionError: the buffer has no directory of its own to put it in.
            TableChangedError: the buffer was reset, rewound or dropped meanwhile.
            StorageError, ResourceExhaustedError: the disk failed, or is full.
        """

    @abstractmethod
    def _open_epochs(self, query: EpochQuery, seed: int | None, view: TableView | None) -> Epochs:
        """Iterates over the batches of `query`, of the rows that are stored now.

        Args:
            query: Which batches come.
            seed: Of their order; None: a random one.
            view: What is made of them. Its windows are those of `query`.
        """

    @abstractmethod
    def _rewind(self, metadata: Metadata) -> None:
        """Goes back to where `metadata` was saved, or raises MissingRowsError and changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Releases the buffer's memory, files and connections. Closing twice is allowed."""

    # -- what follows from it -----------------------------------------------------------------------------------------------------------------

    def _next_draw(self, seed: SupportsIndex | None) -> tuple[int, int] | None:
        """The seed of the next random batch, and the batch's number among those of that seed. None: there is no seed."""
        if seed is not None:
            return check_whole(seed, "seed", 0), 0
        return None if self._seed is None else (self._seed, next(self._batches))

    def _next_order(self) -> int | None:
        """The seed of the next epoch iterator's random orders; None if the buffer has no seed."""
        return None if self._seed is None else derived_seed(self._seed, next(self._orders))

    def _slots_of(self, index: Index) -> tuple[Slots, tuple[int, ...]]:
        """The slots that an index names, and its shape."""
        return as_slots(index, self.state)

    def _view_of(self, view: View | None) -> TableView | None:
        """The view of this table.

        Raises:
            NoTrajectoriesError: the table was made without trajectories.
            InvalidArgumentError: it is no view, or does not fit the table.
        """
        if view is None:
            return None
        checked, trajectories, last = check_view(view), self._trajectories(), self._last_view
        if not trajectories:
            raise NoTrajectoriesError(f"a view ({type(view).__name__}) needs steps, and the table was made without trajectories=True")
        if last is None or last.view != checked or last.trajectories != trajectories:
            self._last_view = last = TableView(checked, trajectories)
        return last

    def sample_by_index(self, index: Index, view: View | None = None) -> TensorDict:
        """The rows that `index` names, in that order. A row may come twice.

        Args:
            index: one of these:

                - numbers of slots: a list, a range, an array or a tensor of any integer dtype. Its shape becomes the batch size: [a, b] gives
                  [a, b, ...]. Negative numbers count from the end of the stored rows in slot order: -1 is the last one.
                - one number: it gives its row, of batch size [...].
                - a slice or a mask of booleans: it chooses among the `size` stored rows in slot order. The buffer is asked for its size first.
            view: as in `sample_batch`. A sequence has its steps after the dimensions of the index.

        Raises:
            SlotIndexError (an IndexError): a number names no stored row, or one of which the view cannot be made; the message says which.
            NoTrajectoriesError, FieldNotFoundError: as in `sample_batch`.
            InvalidArgumentError: the index is none of these, names no row or more than `MAX_BATCH_SIZE`, or is a mask of another length than `size`.
        """
        return self.sample_by_index_fields(index, None, view)

    def sample_by_index_fields(self, index: Index, fields: Fields | None, view: View | None = None, *, priorities: bool = False) -> TensorDict:
        """As `sample_by_index`, but only the fields that `fields` names.

        Args:
            index: as in `sample_by_index`.
            fields: names. Nested keys are joined with '.', or are tuples in a list (``[("next", "obs")]``). The name of a parent (``"next"``) stands
                for all fields below it. ``index`` and ``row_id`` come only if they are named. None: all fields, and these two.
            view: as in `sample_by_index`. What it needs comes, whatever is named: observations, rewards, ends and stacked fields for `Transitions`.
            priorities: whether the batch has one more field, ``priority``: the priorities that the rows have now, float64 of shape [n]. Not together
                with a view. A server of an older version does not send it.

        Raises:
            FieldNotFoundError: a name is not that of a field, a field is named twice, or none is named.
            NoPrioritiesError: priorities are asked for, and the rows of this buffer have none.
        """
        seen, names = self._view_of(view), as_fields(fields)
        if check_flag(priorities, "priorities") and seen is not None:
            raise InvalidArgumentError("priorities do not come with a view")
        slots, shape = self._slots_of(index)
        return shaped(self._by_slots(slots, names, seen, priorities=priorities), shape)

    def episode(self, episode_id: SupportsIndex) -> TensorDict:
        """One whole episode: those of its steps that are stored, in order, as a TensorDict of batch size [T].

        Beside the fields of the steps it has ``index``, ``row_id``, ``episode_id`` and ``step``. Where the final observation is stored, the
        observation after each step is at ``("next", name)``, for the table's `final_fields`; it shares its memory with the observation of the next
        step. If steps are overwritten while they are read, all is read again.

        Args:
            episode_id: as `episodes`, a batch or a writer says it.

        Raises:
            EpisodeNotFoundError: no step of it is stored.
            NoTrajectoriesError: the table was made without trajectories.
            InvalidArgumentError: episode_id is no whole number from 0 to 2^63 - 1.
            OverwrittenError: steps were overwritten whenever it was read, until the time was over.
            TableChangedError: the table was reset or rewound while it was read.
        """
        number, trajectories = check_whole(episode_id, "episode_id", 0), self._trajectories()
        if not trajectories:
            raise NoTrajectoriesError("the rows of this table are no steps of episodes: it was made without trajectories=True")
        rows, has_final = self._episode_rows(number)
        return whole_episode(rows, trajectories, has_final=has_final)

    def sample_random(
        self,
        batch_size: SupportsIndex,
        *,
        seed: SupportsIndex | None = None,
        wait: bool = False,
        uniform: bool = False,
        view: View | None = None,
    ) -> TensorDict:
        """The same as `sample_batch`."""
        return self.sample_batch(batch_size, seed=seed, wait=wait, uniform=uniform, view=view)

    def wait_for(self, rows: SupportsIndex, timeout: SupportsFloat | None = DEFAULT_TIMEOUT) -> None:
        """Waits until the buffer holds `rows` rows, at most `timeout` seconds; None or inf: without a limit. It looks at least four times a second.

        Raises:
            RateLimitedError: the time is over; the message says how many rows are there.
            InvalidArgumentError: the buffer never holds so many rows, or an argument is out of its range.
        """
        wait = RowWait(rows, timeout)
        while pause := wait.pause(self.state()):
            time.sleep(pause)

    def create_epoch_iterator(
        self,
        batch_size: SupportsIndex,
        n_epochs: SupportsIndex = 1,
        *,
        shuffle: bool = False,
        seed: SupportsIndex | None = None,
        drop_last: bool = False,
        fields: Fields | None = None,
        progress: Shown = None,
    ) -> Epochs:
        """Iterates `n_epochs` times over the rows that are stored now. `get_next_batch` takes its batches from this iterator, too.

        It is what `epochs` gives, for one learner, with ``on_overwrite="replace"``.

        Args:
            batch_size: rows per batch; the last batch of an epoch has the rest.
            n_epochs: how often each row comes, at least 1.
            shuffle: whether every epoch has a new random order. False: slot order.
            seed: as in `epochs`.
            drop_last: leaves out the last batch of an epoch if it is smaller than the others.
            fields: as in `sample_by_index_fields`; None: all of them.
            progress: as in `epochs`.

        If a slot is overwritten meanwhile, its newer row comes. No row is torn.

        Raises:
            EmptyTableError: there is no row.
            InvalidArgumentError: an argument is out of its range.
            TableChangedError: (while iterating) the buffer was reset or rewound.
        """
        made = self.epochs(
            batch_size, n_epochs, shuffle=shuffle, seed=seed, drop_last=drop_last, fields=fields, on_overwrite="replace", progress=progress
        )
        self._iterator = made
        return made

    def epochs(
        self,
        batch_size: SupportsIndex,
        n_epochs: SupportsIndex = 1,
        *,
        shuffle: bool = False,
        seed: SupportsIndex | None = None,
        drop_last: bool = False,
        rank: SupportsIndex = 0,
        world_size: SupportsIndex = 1,
        fields: Fields | None = None,
        on_overwrite: str = "skip",
        view: View | None = None,
        progress: Shown = None,
    ) -> Epochs:
        """Iterates over the rows that are stored now, each once an epoch, alone or together with other learners, and can go on after a crash.

        `state_dict` of the iterator says where it stands, and `load_state_dict` of another one goes on there: in another process, after the buffer
        or its server was restarted, in the middle of an epoch. A remote iterator whose server is lost goes on by itself when it is back.

        The learners are told apart by `rank`. Each makes its iterator with the same other arguments, and all of them while the same rows are stored.
        Where that is not sure, one of them makes it, and the others load its `state_dict()`, with their own ``rank`` in it, before the first batch.
        The learner of a rank gets the rows at the places rank, rank + world_size, ... of each epoch's order.

        Args:
            batch_size: rows per batch; the last batch of an epoch has the rest.
            n_epochs: how often each row comes, at least 1.
            shuffle: whether every epoch has a new random order. False: slot order.
            seed: the same seed gives the same orders for the same number of rows: of their row ids, from the oldest on. None: the buffer's own
                seed, if it has one; else a random one, which the token has. Several learners that shuffle need one.
            drop_last: gives every learner the same number of batches, all of `batch_size` rows. The rows after them, fewer than world_size *
                batch_size, are left out of the epoch. False: all rows come, and a learner may have one row, and so one batch, more than another.
            rank: which learner this is, from 0 to world_size - 1.
            world_size: the number of learners.
            fields: as in `sample_by_index_fields`; None: all of them.
            on_overwrite: what becomes of a row that was overwritten before its batch is read, or left the buffer. ``skip``: it is left out, and a
                batch of which nothing is left, too. ``raise``: an error in place of its batch. ``replace``: the newer row of its slot comes. In
                the first and the last case `overwritten` of the iterator counts it. No row is torn.
            view: as in `sample_batch`. Each stored step of which the view can be made comes once an epoch.
            progress: True draws a bar on standard error, where that is a terminal or a notebook. A function is called when the next batch is asked
                for, with the rows behind the iterator, and those of all epochs: this learner's. Rows that are left out count as well.

        Raises:
            EmptyTableError: there is no row.
            NoTrajectoriesError: a view is given, and the table was made without trajectories.
            InvalidArgumentError: an argument is out of its range.
            OverwrittenError: (while iterating) a row was overwritten, and on_overwrite is raise.
            TableChangedError: (while iterating) the buffer was reset or rewound.
        """
        size, number = check_batch_size(batch_size), check_whole(n_epochs, "n_epochs", 1)
        shuffled, whole = check_flag(shuffle, "shuffle"), check_flag(drop_last, "drop_last")
        order = check_whole(seed, "seed", 0) if seed is not None else None
        learners = check_whole(world_size, "world_size", 1)
        learner, names = check_whole(rank, "rank", 0, learners - 1), as_fields(fields)
        overwritten, seen = check_choice(on_overwrite, "on_overwrite", ON_OVERWRITE), self._view_of(view)
        query = EpochQuery(size, number, shuffled, order, whole, names, learner, learners, overwritten, seen.windows if seen else None)
        own = self._next_order() if order is None and shuffled else order
        if own is None and shuffled and learners > 1:
            raise InvalidArgumentError(f"seed (None) must be given: {learners} learners (world_size) that shuffle must have the same orders")
        told = reports_to(progress, "epochs")
        made = self._open_epochs(query, own, seen)
        made.report_to(told)
        return made

    def get_next_batch(self, batch_size: SupportsIndex) -> TensorDict:
        """The next batch of the current epoch iterator, which has its own batch size; where there is none, a random batch.

        Raises:
            StopIteration: the iterator is at its end, and stays there until another one is created.
        """
        check_batch_size(batch_size)
        return self.sample_batch(batch_size) if self._iterator is None else next(self._iterator)

    def calculate_num_batches(self, batch_size: SupportsIndex) -> int:
        """The number of batches of one epoch: size / batch_size, rounded up."""
        return -(-self.size // check_batch_size(batch_size))

    def get_steps_and_iterator(self, n_epochs: SupportsIndex, max_iter: SupportsIndex, batch_size: SupportsIndex) -> int:
        """Prepares a round of training, and says how many times `get_next_batch` is to be called.

        - n_epochs > 0: an epoch iterator is created, and the answer is n_epochs * batches per epoch.
        - n_epochs = 0: batches are random, and the answer is max_iter.

        Raises:
            InvalidArgumentError: an argument is out of its range.
            EmptyTableError: n_epochs > 0, and there is no row.
        """
        epochs, steps, size = check_whole(n_epochs, "n_epochs", 0), check_whole(max_iter, "max_iter", 0), check_batch_size(batch_size)
        if epochs == 0:
            self._iterator = None
            return steps
        batches = self.calculate_num_batches(size)
        self.create_epoch_iterator(size, epochs)
        return epochs * batches

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes capacity, size, pointer and write count to ``path + ".metadata"`` on the caller's disk. The rows are not in it."""
        state = self.state()
        Metadata(state.buffer_size, state.size, state.pointer, state.write_count).write(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes back to where the buffer stood when `save` wrote ``path + ".metadata"``. Rows that were added since are forgotten.

        It brings back no row: the rows that the file names must still be stored. An empty buffer takes the capacity of a file that names no rows.

        Raises:
            MissingRowsError: some of them are not; the message says which. Nothing changes.
            FileNotFoundError: there is no such file.
            InvalidArgumentError: the file is broken.
        """
        self._rewind(Metadata.read(path))
        self._iterator = None

    @property
    def device(self) -> torch.device:
        """The device of the batches. Reading it costs no call."""
        return self._device

    @property
    @abstractmethod
    def storing_device(self) -> torch.device:
        """The device of the stored rows. A table never changes it, so the buffer asks for it once: reading it costs no call."""

    @property
    def buffer_size(self) -> int:
        """The capacity, in rows. Each reading asks the table, as for the properties below: another client may change it."""
        return self.state().buffer_size

    @property
    def size(self) -> int:
        """The rows stored."""
        return self.state().size

    @property
    def data_size(self) -> int:
        """The rows stored."""
        return self.size

    @property
    def pointer(self) -> int:
        """The slot of the next row."""
        return self.state().pointer

    @property
    def durability(self) -> str:
        """What stored rows survive. none: nothing; process: the death of the process that has them; interval, power: a loss of power, too."""
        return self.state().durability

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
