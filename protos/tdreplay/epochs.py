"""Epochs: which rows they have, how learners share them, where a learner stands, and the token that says so.

Nothing of this is kept by a server. The rows of an epoch are a window of row ids, their order follows from a seed and the epoch's number, and a place
in it is a number. So whoever has these few numbers goes on from there, in any process.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import ForkedError, TokenError
from tdreplay.limits import MAX_INT64, check_batch_size, check_choice, check_whole
from tdreplay.progress import Progress, ProgressBar
from tdreplay.tokens import check_keys, check_same, text_of, whole_of
from tdreplay.views import TableView, made_of
from tdreplay.windows import WindowQuery

__all__ = ["ON_OVERWRITE", "START", "EpochPlace", "EpochPlan", "EpochQuery", "Epochs", "Token"]

ON_OVERWRITE = ("skip", "raise", "replace")
"""What may become of rows that are overwritten before they come."""

VERSION = 1

Token: TypeAlias = "dict[str, Any]"  # noqa: S105 - it opens nothing.
"""Values of JSON by their names."""


@dataclass(frozen=True)
class EpochQuery:
    """The arguments of `BaseReplayBuffer.epochs`, checked on construction.

    Raises:
        InvalidArgumentError: an argument is out of its range.
    """

    batch_size: int
    n_epochs: int = 1
    shuffle: bool = False
    seed: int | None = None
    drop_last: bool = False
    fields: tuple[str, ...] | None = None
    rank: int = 0
    world_size: int = 1
    on_overwrite: str = "replace"
    windows: WindowQuery | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_whole(self.n_epochs, "n_epochs", 1)
        check_whole(self.world_size, "world_size", 1)
        check_whole(self.rank, "rank", 0, self.world_size - 1)
        check_choice(self.on_overwrite, "on_overwrite", ON_OVERWRITE)
        if self.seed is not None:
            check_whole(self.seed, "seed", 0)

    def settings(self) -> Token:
        """The arguments that two iterators must have in common where one goes on with the token of the other: all but the seed."""
        windows = {} if self.windows is None else {"windows": self.windows.to_json()}  # Older tokens have none.
        return {
            "batch_size": self.batch_size,
            "n_epochs": self.n_epochs,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "fields": None if self.fields is None else list(self.fields),
            "rank": self.rank,
            "world_size": self.world_size,
            "on_overwrite": self.on_overwrite,
            **windows,
        }


@dataclass(frozen=True)
class EpochPlace:
    """Where a learner stands.

    Attributes:
        epoch: The epoch of the next batch; after the last one the number of epochs.
        position: How many of the learner's places of that epoch are behind it.
        overwritten: The rows that were overwritten before they came, so far.
    """

    epoch: int = 0
    position: int = 0
    overwritten: int = 0


START = EpochPlace()
P = TypeVar("P", bound=EpochPlace)


@dataclass(frozen=True)
class EpochPlan:
    """Which rows a learner gets, in which batches.

    An epoch is an order of the window's rows. The learner of a rank has the places rank, rank + world_size, ... of it. Its batches are `batch_size`
    of these each, and the last one has the rest. With drop_last every learner has the same number of batches, all of them full, and the places
    after them are left out.

    Attributes:
        query: The arguments.
        table: The name of the table; empty in process.
        generation_id: Of the table. The window belongs to it.
        first_row_id: The first row of the window.
        end_row_id: The row after its last one.
        seed: Of the random orders.
        of_steps: Whether the rows are steps of episodes.
    """

    query: EpochQuery
    table: str
    generation_id: str
    first_row_id: int
    end_row_id: int
    seed: int
    of_steps: bool = False

    @classmethod
    def over(cls, query: EpochQuery, table: str, generation_id: str, rows: range, seed: int | None, *, of_steps: bool = False) -> EpochPlan:
        """Epochs over rows of these ids. Where there is no seed, one is drawn: with it in the token, the order can be found again."""
        return cls(query, table, generation_id, rows.start, rows.stop, secrets.randbits(63) if seed is None else seed, of_steps)

    @property
    def rows(self) -> int:
        """The rows of the window."""
        return self.end_row_id - self.first_row_id

    @cached_property
    def share(self) -> int:
        """The learner's places of an epoch."""
        query = self.query
        if query.drop_last and not self.of_steps:
            return self.rows // (query.world_size * query.batch_size) * query.batch_size
        return max(0, -(-(self.rows - query.rank) // query.world_size))

    def done(self, place: EpochPlace) -> tuple[int, int]:
        """How many rows of all epochs are behind `place`, and how many there are."""
        total = self.query.n_epochs * self.share
        return min(place.epoch * self.share + place.position, total), total

    def is_over(self, place: EpochPlace) -> bool:
        """Whether no batch comes after `place`."""
        return place.epoch >= self.query.n_epochs or not self.share

    def after(self, place: P, overwritten: int = 0) -> P:
        """The place after `batch_size` places from `place` on, of which so many rows were overwritten."""
        return self.behind(place, self.query.batch_size, overwritten)

    def behind(self, place: P, places: int, overwritten: int = 0) -> P:
        """The place after so many places of one epoch from `place` on, of which so many rows were overwritten."""
        position, gone = place.position + places, place.overwritten + overwritten
        epoch, position = (place.epoch, position) if position < self.share else (place.epoch + 1, 0)
        return replace(place, epoch=epoch, position=position, overwritten=gone)

    def end(self, place: P) -> P:
        """The end, where all rows after `place` were overwritten."""
        left = 0 if self.is_over(place) else (self.query.n_epochs - place.epoch) * self.share - place.position
        return replace(place, epoch=self.query.n_epochs, position=0, overwritten=min(place.overwritten + left, MAX_INT64))

    def check_place(self, place: EpochPlace) -> None:
        """Passes where a batch of the plan begins at `place`, or the epochs end there.

        Raises:
            TokenError: none does.
        """
        last = place.epoch == self.query.n_epochs
        whole = (self.of_steps or place.position % self.query.batch_size == 0) and (place.position < self.share or not place.position)
        if not 0 <= place.epoch <= self.query.n_epochs or place.position < 0 or not whole or (last and place.position):
            raise TokenError(
                f"position ({place.position}) of epoch ({place.epoch}) is not where a batch begins: "
                f"{self.query.n_epochs} epochs have {self.share} rows each, in batches of {self.query.batch_size}"
            )

    # -- the token ----------------------------------------------------------------------------------------------------------------------------

    def token(self, place: EpochPlace) -> Token:
        """What `at_token` takes, made of values of JSON."""
        window = {"first_row_id": self.first_row_id, "end_row_id": self.end_row_id, "seed": self.seed}
        where = {"epoch": place.epoch, "position": place.position, "overwritten": place.overwritten}
        return {"version": VERSION, "table": self.table, "generation_id": self.generation_id, **window, **where, **self.query.settings()}

    def at_token(self, token: object) -> tuple[EpochPlan, EpochPlace]:
        """The plan that goes on where `token` was made, and the place.

        Raises:
            TokenError: it is no token, or one of another table, or of epochs with other arguments.
        """
        entries = self._entries(token)
        first = whole_of(entries, "first_row_id", 0, MAX_INT64 - 1)
        end = whole_of(entries, "end_row_id", first + 1, MAX_INT64)
        found = replace(
            self,
            generation_id=text_of(entries, "generation_id"),
            first_row_id=first,
            end_row_id=end,
            seed=whole_of(entries, "seed", 0, MAX_INT64),
        )
        place = EpochPlace(*(whole_of(entries, name, 0, MAX_INT64) for name in ("epoch", "position", "overwritten")))
        found.check_place(place)
        return found, place

    def _entries(self, token: object) -> dict[str, Any]:
        """The entries of a token of epochs with these arguments.

        Raises:
            TokenError: it is none.
        """
        entries = check_keys(token, self.token(START))
        seed = {} if self.query.seed is None else {"seed": self.query.seed}
        check_same(entries, {"version": VERSION, "table": self.table, **self.query.settings(), **seed})
        return entries


class Epochs(OfOneProcess, Iterator[TensorDict]):
    """The batches of some epochs, in turn, with a place that can be saved and taken up again.

    `state_dict` says where the iterator stands: after the batch that it gave last. Save it when the batch was used, and a learner that starts again
    gets every row exactly once: what was read ahead and not taken does not count. After an interrupt (Ctrl-C) during `next` it goes on at its place.
    An error is raised in place of the batch that it concerns. No batches come after it, until a token is loaded; its own is as good as any.

    One thread may use it at a time; `close` may be called from any.

    Args:
        plan: Which rows come.
        view: What is made of their windows. None: the rows come as they are.
    """

    _instead = "it belongs to a buffer of this process. Give the other process its state_dict()"

    def __init__(self, plan: EpochPlan, view: TableView | None = None) -> None:
        self._plan, self._view, self._place = plan, view, START
        self._stopped = False
        self._told: Progress | None = None

    def report_to(self, progress: Progress | None) -> None:
        """From now on `progress` is told how many rows are behind the iterator, and how many there are: when a batch is asked for, and at the end.

        It is told before the batch is read, so an error that it raises loses none. A bar is closed at the end, and with the iterator.
        """
        self._told = progress

    def _tell_end(self) -> None:
        if self._told is not None:
            self._told(*self._plan.done(self._place))
            self._close_bar()

    def _close_bar(self) -> None:
        if isinstance(self._told, ProgressBar):
            self._told.close()

    @property
    def epoch(self) -> int:
        """The number of the epoch of the next batch, from 0 up. At the end it is the number of epochs."""
        return self._place.epoch

    @property
    def overwritten(self) -> int:
        """How many rows were overwritten before they came, in all epochs so far: those that were left out, or came as newer ones.

        A row that is overwritten again in a later epoch counts again. With the end the rows of the last batches are counted, too.
        """
        return self._place.overwritten

    def state_dict(self) -> Token:
        """A token for `load_state_dict`: a dict of numbers and texts, which `json.dumps` takes, of a few hundred bytes. It costs no call."""
        return self._plan.token(self._place)

    def load_state_dict(self, token: Mapping[str, Any]) -> None:
        """Goes on after the batch that another iterator had given last when its `state_dict` was called.

        That one may have been in another process, and the table may have been closed, restarted or written to since. The iterator must have been
        made with the same arguments; its window, and its seed where it was given none, become those of the token.

        Raises:
            TokenError: it is no token, or one of another table, or of epochs with other arguments; the message says which.
            TableChangedError: the table was reset, rewound, dropped or lost rows since the token's epochs began.
                In both cases the iterator stays where it was.
        """
        plan, place = self._plan.at_token(token)
        self._go_to(plan, place)
        self._plan, self._place, self._stopped = plan, place, False

    @abstractmethod
    def _go_to(self, plan: EpochPlan, place: EpochPlace) -> None:
        """Makes the batch at `place` of `plan` the next one, or raises an error and changes nothing."""

    @abstractmethod
    def _next(self) -> tuple[TensorDict | None, EpochPlace]:
        """The next batch, None at the end, and the place after it."""

    @abstractmethod
    def _break_off(self) -> None:
        """After an interrupt: sees to it that the next batch is the one at `_place`."""

    @abstractmethod
    def _end(self) -> None:
        """Gives back what it holds."""

    def close(self) -> None:
        """Ends it: no batch comes any more, unless a token is loaded. Closing twice is allowed."""
        self._stopped = True
        self._close_bar()
        self._end()

    def __next__(self) -> TensorDict:
        if self._stopped:
            raise StopIteration
        before = self._place
        if self._told is not None and not self._plan.is_over(before):
            self._told(*self._plan.done(before))
        try:
            batch, self._place = self._next()
            if batch is not None:
                return made_of(batch, self._view)
        except ForkedError:  # As each call in a fork of the process: nothing changes.
            raise
        except Exception:
            self._stopped = True
            raise
        except BaseException:
            self._place = before  # An interrupt: nobody got the batch.
            self._break_off()
            raise
        self._tell_end()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
