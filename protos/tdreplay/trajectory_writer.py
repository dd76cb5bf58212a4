"""The writer of trajectories: it numbers the steps of episodes, and gives them on as rows. The buffer in process and the remote one share it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.digests import digest_of
from tdreplay.episode_numbers import EpisodePlace, EpisodePlaces, NumberedSteps, in_turn, kinds_of, numbers, side_by_side
from tdreplay.errors import InvalidArgumentError, NoPrioritiesError, NoTrajectoriesError, ReplayError, note_of_closing
from tdreplay.final_observations import NONE, FinalForms, Finals, ResetWatch, final_columns, picked
from tdreplay.given_steps import GivenSteps, StepForms
from tdreplay.limits import MAX_BATCH_SIZE, check_whole, shown
from tdreplay.memory import as_rows, rows_of
from tdreplay.rows import Given, Row
from tdreplay.schema import Columns
from tdreplay.system_fields import EPISODE_ID, STEP, STEP_KIND, StepKind
from tdreplay.table_config import TableConfig

__all__ = ["StepSink", "TrajectoryWriter", "joined"]

Place: TypeAlias = "EpisodePlace | EpisodePlaces"
AUTORESETS = ("same_step", "next_step", "disabled")
GOES_ON = np.uint8(StepKind.STEP)


class StepSink(ABC):
    """Where the rows of a writer go.

    Attributes:
        mark: What the rows that were taken last left: see `take`.
        cast: Whether values of other dtypes are converted.
    """

    mark: Any
    cast: bool

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it takes rows."""

    @property
    @abstractmethod
    def takes_at_once(self) -> bool:
        """Whether it takes a row, and a final observation behind it, without waiting for a server or a table."""

    @abstractmethod
    def columns(self, rows: Given) -> Columns:
        """Rows as they are stored, as columns."""

    @abstractmethod
    def take(self, rows: Given, before: Any, after: Any) -> None:
        """Takes rows, all or none. In the moment in which they are taken `mark` becomes `after`, also where the call is interrupted.

        Raises:
            FailedPreconditionError: `mark` is not `before`: another call, of a signal handler or another thread, came between.
        """

    @abstractmethod
    def take_both(self, rows: Given, finals: Given, marks: tuple[Any, Any, Any]) -> None:
        """Takes rows, and after them final observations.

        `mark` goes from the first of `marks` to the last, over the second where only `rows` are taken so far.
        """

    @abstractmethod
    def flush(self, timeout: float | None) -> None:
        """Returns when what was taken is stored."""

    @abstractmethod
    def close(self, timeout: float | None) -> None:
        """Flushes, and ends."""


class _Call(NamedTuple):
    """A call that gives steps.

    Attributes:
        given: The steps.
        before: Where the environments were before them.
        digest: That of the steps, where it was noted when the call was interrupted.
    """

    given: Given
    before: Place
    digest: bytes | None


class TrajectoryWriter(OfOneProcess):
    """Appends the steps of episodes to a table of trajectories: ``buffer.trajectory_writer()`` makes it. Use it in one thread at a time.

    A step has what environment and agent did at one time: the observation before the action, the action, the reward after it, and the ends. The
    writer numbers episodes and steps. With a step that ends an episode, `final` brings the observation after it, which is stored as a row of its
    own. The next step begins a new episode. Each step is stored once, and those of an episode in order::

        with buffer.trajectory_writer() as writer:
            obs, _ = env.reset()
            while training:
                action = policy(obs)
                next_obs, reward, terminated, truncated, _ = env.step(action)
                step = {"obs": obs, "action": action, "reward": reward, "terminated": terminated, "truncated": truncated}
                writer.append(step, final=next_obs)
                obs = env.reset()[0] if terminated or truncated else next_obs

    An episode that is open when its writer is closed, or is gone, is abandoned: its steps stay. What is said of `Writer` holds here, too, where the
    buffer is a remote one: rows wait for others, are sent again after a lost connection, and are handed back by an error's ``rows`` where they were
    not stored. Such an error ends the writer, and abandons its open episodes. `add_batch` takes the rows as they are. Where the buffer is in process,
    a call that failed stored nothing, and the writer goes on where it was.

    An interrupted call (Ctrl-C) leaves the writer of a remote buffer whole: its steps were taken, or they were not. Steps that the next call gives
    again are stored once; if it gives others, these go on behind those that were taken. Where the buffer is in process, open another writer then.

    Args:
        sink: where the rows go.
        config: what the table was made with; None: an older server does not say it.
        n_envs: the number of environments whose steps come together.
        autoreset: as in `BaseReplayBuffer.trajectory_writer`.

    Raises:
        NoTrajectoriesError: the table is none of trajectories.
        InvalidArgumentError: n_envs or autoreset breaks its rule.
    """

    _instead = "its episodes belong to this process. Give the other process the buffer, and open a writer there"

    def __init__(self, sink: StepSink, config: TableConfig | None, n_envs: SupportsIndex, autoreset: Any) -> None:
        if config is None or not config.trajectories:
            raise NoTrajectoriesError("the rows of this table are no steps of episodes: make it with trajectories=True, or use add and add_batch")
        self._sink, self._sampler = sink, config.sampler
        self._n_envs, mode = check_whole(n_envs, "n_envs", 1, MAX_BATCH_SIZE), _autoreset(autoreset)
        self._forms, self._finals = StepForms(config.trajectories), FinalForms(config.trajectories)
        self._resets, self._watch = mode == "next_step", ResetWatch(on=mode is None)
        self._pending: _Call | None = None  # A call that is not over: it runs, or was interrupted.
        sink.mark = EpisodePlace.new() if self._n_envs == 1 else EpisodePlaces.new(self._n_envs)

    @property
    def episode_ids(self) -> npt.NDArray[np.int64]:
        """The episode of each environment's next step: int64 of shape [n_envs], a copy. After the end of one it is already the following one's."""
        place: Place = self._sink.mark
        return np.array([place.episode_id], np.int64) if isinstance(place, EpisodePlace) else place.episode_ids.copy()

    @property
    def takes_at_once(self) -> bool:
        """Whether `append` takes its next step without waiting: it is of a remote buffer, of one environment, and there is room."""
        return self._n_envs == 1 and self._sink.takes_at_once

    def append(self, step: Row, final: Any = None, priority: Any = None) -> None:
        """Adds a step of each environment. Its memory is copied. Blocks as `Writer.append` does; in process, as `add`.

        Args:
            step: A dict, nested or not, of arrays, tensors and numbers, or a TensorDict, as `add` takes it; where there are several environments, as
                `add_batch` takes it: each value has a first dimension of n_envs. Or one in TorchRL's form, which has the reward, the ends and the
                observation after the step under ``next``. The ends are bools, of shape [] or [1] a step. Where both are true, it terminated.
            final: The observation after the step, with the fields of `final_fields`, nested as in the step. Where there is one such field, its bare
                value will do. Only that of environments whose episode ended is looked at, so that it may always be given. Of several environments it
                may also be a list or an array of objects, None for those that have none, as ``info["final_obs"]`` of Gymnasium. Where an episode is
                truncated without it, its last step is no anchor of transitions.
            priority: One number, or n_envs of them, as in `add`. None: the highest that the buffer has seen so far.

        Raises:
            SchemaError, CodecError: the step or the final observation lacks a field, or does not fit. Nothing is added; the writer goes on.
            InvalidArgumentError, NoPrioritiesError: of a priority. Nothing is added; the writer goes on.
            ReplayError: steps were not stored; where the buffer is a remote one, they are the error's ``rows``.
        """
        if self._n_envs > 1:
            self._append_all(step, final, priority)
        else:
            self._append_one(step, final, priority)
        self._pending = None  # Calls nothing: an interrupt comes before it, or when this call is over.

    def _append_one(self, step: Row, final: Any, priority: Any) -> None:
        steps = self._forms.one(step)
        given = steps.given if priority is None else self._prioritized(steps.given, priority)
        place = self._begun(given)
        if place is None:
            return
        if place.resets:
            self._sink.mark = EpisodePlace(place.episode_id)
            return
        self._watch.look(given, cast=self._sink.cast)
        if steps.terminated or steps.truncated:
            self._end(steps._replace(given=given), final, place)
            return
        values = {**given.values, EPISODE_ID.name: place.episode_id, STEP.name: place.step, STEP_KIND.name: GOES_ON}
        rows, after = Given(values, (), None, (), given.priorities), EpisodePlace(place.episode_id, place.step + 1)
        try:
            self._sink.take(rows, place, after)
        except BaseException as error:
            self._note(error, given, place)
            raise

    def extend(self, steps: Row, final: Any = None, priorities: Any = None) -> None:
        """Adds n steps that the one environment took in turn. Their memory is copied. Blocks as `Writer.extend` does; in process, as `add_batch`.

        Args:
            steps: As `add_batch` takes them: each value has a first dimension of n. Episodes may end among them.
            final: The observations after those steps that end an episode, one for each of them: values with that first dimension, or a list, in
                which None stands for none. Steps in TorchRL's form bring them.
            priorities: One number, or n of them.

        Raises:
            InvalidArgumentError: the writer has several environments.
            SchemaError, CodecError, NoPrioritiesError, ReplayError: as `append`.
        """
        if self._n_envs > 1:
            raise InvalidArgumentError(f"extend takes steps of one environment in turn, and this writer has n_envs={self._n_envs}: use append")
        self._extend(steps, final, priorities)
        self._pending = None  # As in `append`.

    def _extend(self, steps: Row, final: Any, priorities: Any) -> None:
        found = self._forms.many(steps, None)
        given = self._prioritized(found.given, priorities)
        place = self._begun(given)
        if place is None:
            return
        numbered = in_turn(place, found.terminated | found.truncated, resets=self._resets)
        finals = self._following(final, found, numbered.ended, len(numbered.ended), np.arange(len(numbered.ended)))
        self._watch.look(given, cast=self._sink.cast)
        self._take_all(found._replace(given=given), numbered, finals, place)

    def abandon(self, envs: Any = None) -> None:
        """Leaves open episodes as they are: the next step of these environments begins a new one.

        Args:
            envs: Which environments: a number, several, or a mask of n_envs bools. None: all.

        Raises:
            InvalidArgumentError: there is no such environment.
        """
        places = self._environments(envs)
        place, self._pending = self._paid(), None
        self._watch.forget()
        self._sink.mark = (place.new() if len(places) else place) if isinstance(place, EpisodePlace) else place.renewed(places)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until all steps are stored, as `Writer.flush` does. In process they are.

        Raises:
            ReplayError: steps were not stored; they are the error's ``rows``.
        """
        self._paid()
        self._sink.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flushes, and ends the writer. Its open episodes are abandoned. Closing twice is allowed.

        Raises:
            ReplayError: steps were not stored; they are the error's ``rows``, and are counted in the log.
        """
        if self._sink.is_open:
            self._paid()
        self._sink.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Closes the writer. Where the block ended with an error, an error of the closing is added to that as a note."""
        try:
            self.close()
        except ReplayError as failure:
            if error is None:
                raise
            note_of_closing(error, failure)

    # -- inside ---------------------------------------------------------------------------------------------------------------------------------

    def _append_all(self, step: Row, final: Any, priorities: Any) -> None:
        found = self._forms.many(step, self._n_envs)
        given = self._prioritized(found.given, priorities)
        places = self._begun(given)
        if places is None:
            return
        numbered = side_by_side(places, found.terminated | found.truncated, resets=self._resets)
        finals = self._following(final, found, numbered.ended, self._n_envs, numbered.ended)
        self._watch.look(given, cast=self._sink.cast)
        self._take_all(found._replace(given=given), numbered, finals, places)

    def _following(self, final: Any, found: GivenSteps, ended: npt.NDArray[np.int64], number: int, at: npt.NDArray[np.int64]) -> Finals:
        """The observations after the steps `ended`: those at the places `at` of `number` in `final`, or what came with the steps."""
        if not len(ended):
            return NONE
        if final is None and found.following is not None:
            return Finals(np.arange(len(ended)), {name: picked(value, ended) for name, value in found.following.items()})
        return self._finals.many(final, found.observation, number, at)

    def _end(self, steps: GivenSteps, final: Any, place: EpisodePlace) -> None:
        """Adds the last step of the one environment's episode, and the observation after it."""
        finals = NONE
        if final is not None:
            finals = self._finals.one(final, steps.observation)
        elif steps.following is not None:
            finals = Finals(np.zeros(1, np.int64), {name: [value] for name, value in steps.following.items()})
        kind = (StepKind.TERMINATED if steps.terminated else StepKind.TRUNCATED) | (StepKind.FINAL_FOLLOWS if len(finals.among) else 0)
        values = {**steps.given.values, **numbers(place.episode_id, place.step, np.uint8(kind))}
        rows, after = steps.given._replace(values=values), EpisodePlace.new(resets=self._resets)
        self._take(steps.given, rows, finals, (place, after), np.array([place.episode_id]), np.array([place.step + 1]), np.zeros(1, np.int64))

    def _take_all(self, found: GivenSteps, numbered: NumberedSteps, finals: Finals, before: Place) -> None:
        """Adds numbered steps, and the observations after those that ended an episode."""
        followed = numbered.ended[finals.among]
        kinds = kinds_of(found.terminated, numbered.ended, followed)
        rows = found.given._replace(values={**found.given.values, **numbers(numbered.episode_ids, numbered.steps, kinds)})
        if numbered.kept is not None:
            rows = _those(rows, np.flatnonzero(numbered.kept))
        if not rows.number:
            self._sink.mark = numbered.after
            return
        ids, steps = numbered.episode_ids[followed], numbered.steps[followed] + 1
        self._take(found.given, rows, finals, (before, numbered.after), ids, steps, followed if self._n_envs > 1 else followed[:0])

    def _take(
        self,
        given: Given,
        rows: Given,
        finals: Finals,
        marks: tuple[Place, Place],
        ids: npt.NDArray[np.int64],
        steps: npt.NDArray[np.int64],
        at: npt.NDArray[np.int64],
    ) -> None:
        """Gives rows on, and behind them final observations of these episode ids and steps. `given` are the steps as they came.

        `at` are the places at which the episodes after these begin, where the next call gives their first steps.
        """
        before, after = marks
        try:
            if not len(finals.among):
                self._sink.take(rows, before, after)
                return
            columns = self._sink.columns(rows)
            made = final_columns(finals, columns, cast=self._sink.cast)
            made |= {name: torch.from_numpy(column) for name, column in numbers(ids, steps, np.full(len(ids), StepKind.FINAL, np.uint8)).items()}
            last = Given(made, (), len(ids), (), None if rows.priorities is None else np.zeros(len(ids)))
            self._sink.take_both(Given(columns, (), rows.number, (), rows.priorities), last, (before, after._replace(owed=last), after))
            self._watch.note(at, {name: made[name] for name in finals.values})
        except BaseException as error:
            self._note(error, given, before)
            raise

    def _begun(self, given: Given) -> Any:
        """Where the environments are before these steps. None: an interrupted call took the same steps.

        What is noted of a call stays until it is over, so an interrupt may come at any moment, also of the call that repeats it.
        """
        pending = self._pending
        if pending is not None and self._sink.mark is not pending.before and (pending.digest or _digest(pending.given)) == _digest(given):
            self._paid()
            return None
        place = self._paid()
        self._pending = _Call(given, place, None)
        return place

    def _paid(self) -> Any:
        """Where the environments are, once the final observations that an interrupted call did not come to are taken."""
        place: Place = self._sink.mark
        if place.owed is None:
            return place
        paid = place._replace(owed=None)
        self._sink.take(place.owed, place, paid)
        return paid

    def _note(self, error: BaseException, given: Given, before: Place) -> None:
        """Notes by which digest the steps are known if an interrupted call, which took them, is repeated: their memory may have others by then.

        Another interrupt meanwhile is left out.
        """
        for _ in range(100):
            pending = self._pending
            if isinstance(error, ReplayError) or self._sink.mark is before or pending is None or pending.digest is not None:
                return
            with suppress(BaseException):
                self._pending = _Call(given, before, _digest(given))

    def _prioritized(self, given: Given, priorities: Any) -> Given:
        if priorities is not None and not self._sampler.has_priorities:
            raise NoPrioritiesError(f"the rows of this table have no priorities: its sampler is {self._sampler}")
        return given.prioritized(priorities)

    def _environments(self, envs: Any) -> npt.NDArray[np.int64]:
        """The numbers of environments."""
        if envs is None:
            return np.arange(self._n_envs)
        places = np.asarray(envs)
        if places.dtype == bool and places.shape == (self._n_envs,):
            places = np.flatnonzero(places)
        places = places.reshape(-1)
        if places.size and (places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= self._n_envs):
            raise InvalidArgumentError(f"envs ({shown(envs)}) must be numbers from 0 to {self._n_envs - 1}, or {self._n_envs} bools")
        return places.astype(np.int64)


def joined(rows: Given, finals: Given) -> Given:
    """Columns of rows, and final observations behind them, as one: a copy. They have priorities where `rows` have."""
    values = {name: _joined(column, finals.values[name]) for name, column in rows.values.items()}
    priorities = None if rows.priorities is None else np.concatenate([rows.priorities, np.zeros(finals.number)])
    return Given(values, (), rows.number + finals.number, (), priorities)


def _joined(column: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    made = torch.empty((len(column) + len(behind), *column.shape[1:]), dtype=column.dtype, device="cpu")
    if made.nbytes:  # By NumPy: torch copies with a pool of threads, which takes longer for so few rows.
        target = as_rows(made)
        target[: len(column)], target[len(column) :] = rows_of(column), rows_of(behind)
    return made


def _those(rows: Given, places: npt.NDArray[np.int64]) -> Given:
    """The rows at these places."""
    values = {name: picked(value, places) for name, value in rows.values.items()}
    return rows._replace(values=values, rows=len(places), priorities=None if rows.priorities is None else rows.priorities[places])


def _digest(given: Given) -> bytes:
    return digest_of(given.columns(None, cast=False))


def _autoreset(autoreset: Any) -> str | None:
    """How the environments begin again: a name of `AUTORESETS`, or Gymnasium's mode."""
    name = getattr(autoreset, "name", autoreset)
    mode = name.lower() if isinstance(name, str) else name
    if mode is not None and mode not in AUTORESETS:
        raise InvalidArgumentError(f"autoreset ({shown(autoreset)}) must be one of {AUTORESETS}, Gymnasium's AutoresetMode, or None")
    return mode
