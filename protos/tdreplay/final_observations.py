"""The observations after the last steps of episodes, as users give them, and the rows that are made of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import is_tensor_collection

from tdreplay.errors import SchemaError
from tdreplay.fields import DTYPE_NAMES, Field
from tdreplay.limits import shown
from tdreplay.rows import Given, given_row, given_rows
from tdreplay.schema import Columns
from tdreplay.trajectories import Trajectories
from tdreplay.values import fitted

__all__ = ["NONE", "FinalForms", "Finals", "ResetWatch", "final_columns", "picked"]

Places = npt.NDArray[np.int64]


class Finals(NamedTuple):
    """Some observations.

    Attributes:
        among: Which of the ended episodes have one, in order: int64 of shape [k].
        values: Field name -> k values.
    """

    among: Places
    values: Mapping[str, Any]


NONE = Finals(np.empty(0, np.int64), {})


class FinalForms:
    """Takes final observations as they come.

    An observation has the fields of `final_fields`, nested as in the step. Where there is one such field, its bare value will do.

    Args:
        trajectories: What the table knows of the episodes.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self._names = trajectories.final_fields
        self._roots = {name.partition(".")[0] for name in self._names}

    def one(self, final: Any, fields: Sequence[str]) -> Finals:
        """The one observation of an episode that ended; None: there is none.

        Raises:
            SchemaError, CodecError: it lacks a field, has another one, or holds what cannot be stored.
        """
        return self._of_each([final], fields)

    def many(self, final: Any, fields: Sequence[str], rows: int, ended: Places) -> Finals:
        """The observations at the places `ended` among `rows` observations; None stands for none, for all or for one.

        Raises:
            SchemaError, CodecError: as `one`. Or there is another number of them.
        """
        if final is None:
            return NONE
        if _is_list(final):
            self._check_number(len(final), rows)
            return self._of_each([final[place] for place in ended], fields)
        given = given_rows(self._nested(final))
        self._check_number(given.number, rows)
        if any(_is_list(value) for value in given.values.values()):
            return self._of_each([_one_of(given.values, place) for place in ended], fields)
        _check_names(given.values.keys(), fields)
        return Finals(np.arange(len(ended)), {name: picked(value, ended) for name, value in given.values.items()})

    def _of_each(self, finals: Sequence[Any], fields: Sequence[str]) -> Finals:
        """Observations that came one by one, None where there is none."""
        there = [at for at, final in enumerate(finals) if final is not None]
        if not there:
            return NONE
        observations = [given_row(self._nested(finals[at])).values for at in there]
        for observation in observations:
            _check_names(observation.keys(), fields)
        return Finals(np.array(there, np.int64), {name: [observation[name] for observation in observations] for name in fields})

    def _nested(self, final: Any) -> Any:
        """An observation under the names of its fields."""
        if (isinstance(final, Mapping) or is_tensor_collection(final)) and any(str(key).partition(".")[0] in self._roots for key in final.keys()):  # noqa: SIM118 - a TensorDict iterates over its rows.
            return final
        if len(self._names) > 1:
            raise SchemaError(f"final ({shown(final)}) must have the fields {list(self._names)}, nested as in the step")
        for key in reversed(self._names[0].split(".")):
            final = {key: final}
        return final

    def _check_number(self, number: int, rows: int) -> None:
        if number != rows:
            raise SchemaError(f"final: {number} observations came, and there must be {rows}: one for each environment, or for each end of an extend")


class ResetWatch:
    """Warns once where the first step of an episode has the observation with which the one before it ended.

    So it is where an environment is reset by its next step, and the writer was not told: that step is none.

    Args:
        on: Whether it looks.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._last: tuple[Places, Columns] | None = None

    def note(self, at: Places, finals: Columns) -> None:
        """Episodes ended with these observations, one at each of these places; where the next ones begin, there is a step of the next call."""
        if self._on:
            self._last = at, finals

    def forget(self) -> None:
        """What comes next does not follow what was noted."""
        self._last = None

    def look(self, given: Given, *, cast: bool) -> None:
        """Looks at the steps that come next. The user called what called the caller."""
        if self._last is None:
            return
        (places, finals), self._last = self._last, None
        if any(_is_same(given, at, {name: column[row] for name, column in finals.items()}, cast=cast) for row, at in enumerate(places)):
            self._on = False
            what = "a step has the observation with which the episode before it ended: it looks like the reset of an environment that resets itself"
            warnings.warn(f'{what}. Say autoreset="next_step" to leave such steps out, or "same_step" or "disabled" if it is a step', stacklevel=4)


def _is_same(given: Given, at: int, final: Columns, *, cast: bool) -> bool:
    """Whether the given step at a place has this observation."""
    for name, column in final.items():
        value = given.values[name] if given.rows is None else given.values[name][at]
        found = fitted(name, value, Field(name, column.dtype, tuple(column.shape)), cast=cast, batch=False)
        if found.dtype is not column.dtype or found.shape != column.shape or not torch.equal(found.cpu(), column.cpu()):
            return False
    return True


def picked(value: Any, places: Places) -> Any:
    """The elements of a tensor, an array or a list at these places: a copy."""
    if isinstance(value, torch.Tensor):
        return value[torch.from_numpy(places).to(value.device)]
    return value[places] if isinstance(value, np.ndarray) else [value[place] for place in places]


def final_columns(finals: Finals, steps: Columns, *, cast: bool) -> dict[str, torch.Tensor]:
    """The rows of final observations, in memory of their own: field name -> tensor of shape [k, ...]. What an observation does not have is 0.

    Args:
        finals: The observations.
        steps: The steps that they follow, whose dtypes and shapes they have.
        cast: Whether values of other dtypes are converted.

    Raises:
        SchemaError, CodecError: a value is of another dtype or shape, or cannot be stored.
    """
    rows = len(finals.among)
    made: dict[str, torch.Tensor] = {}
    for name, column in steps.items():
        if name in finals.values:
            made[name] = _fitted(name, finals.values[name], column, rows, cast=cast)
        else:
            made[name] = torch.zeros((rows, *column.shape[1:]), dtype=column.dtype, device=column.device)
    return made


def _fitted(name: str, value: Any, column: torch.Tensor, rows: int, *, cast: bool) -> torch.Tensor:
    field = Field(name, column.dtype, tuple(column.shape[1:]))
    found = fitted(name, value, field, cast=cast, batch=True)
    if found.dtype is not field.dtype or tuple(found.shape) != (rows, *field.shape):
        got = f"{DTYPE_NAMES.get(found.dtype, found.dtype)}{list(found.shape[1:])}"
        raise SchemaError(f"final: field {name!r}: expected {field}, as in the step, got {got}")
    return found.to(column.device, copy=True)


def _check_names(names: Any, fields: Sequence[str]) -> None:
    if names != set(fields):
        raise SchemaError(f"final: it has the fields {sorted(names)}, and must have {sorted(fields)}: those of final_fields")


def _one_of(values: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    """The observation at one place, nested; None where there is none."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if value[place] is not None:
            *parents, leaf = name.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value[place]
    return nested or None


def _is_list(value: Any) -> bool:
    """Whether it has an object for each environment."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object)
