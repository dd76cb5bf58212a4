"""Steps of episodes as users give them: from a loop over a Gymnasium environment, or in TorchRL's form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import SchemaError
from tdreplay.limits import shown
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.system_fields import STEP_NAMES, WINDOW_NAMES
from tdreplay.trajectories import Trajectories

__all__ = ["GivenSteps", "StepForms"]

NEXT, DONE = "next.", "done"
"""What the names of TorchRL's next fields begin with, and its field for either end."""


class GivenSteps(NamedTuple):
    """Steps as a user gave them. Nothing is copied.

    Attributes:
        given: The steps.
        terminated: Whether the episode terminated with each: a bool for one step, else of shape [n].
        truncated: Whether it was truncated, in the same form. Where both are true, it terminated.
        observation: The names of the fields that an observation has.
        following: The observations after the steps, where steps in TorchRL's form bring them: field name -> value. Else None.
    """

    given: Given
    terminated: Any
    truncated: Any
    observation: tuple[str, ...]
    following: Mapping[str, Any] | None


class _Form(NamedTuple):
    """Where the fields of a step are among the values that came.

    Attributes:
        names: The names of these values.
        observation: The names of the fields that an observation has.
        fields: The fields of a step -> where each of them is. None: the values are the fields.
        following: The fields of the observation after the step -> where each of them is. None: it did not come.
    """

    names: tuple[str, ...] = ()
    observation: tuple[str, ...] = ()
    fields: Mapping[str, str] | None = None
    following: Mapping[str, str] | None = None


class StepForms:
    """Takes steps as they come, and says what is missing. It knows the form of the last ones, for which it does not look again.

    A step in TorchRL's form has what came of the action under ``next``: the reward, the ends, the observation after it. The first two become fields
    of the step, and so does whatever else is there alone. ``done`` is left out: it follows from the ends.

    Args:
        trajectories: What the table knows of the episodes.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self._trajectories, self._terminated, self._truncated = trajectories, trajectories.terminated, trajectories.truncated
        self._form = _Form()

    def one(self, step: Row) -> GivenSteps:
        """One step, without a row dimension.

        Raises:
            SchemaError, CodecError: as `given_row`. Or a field is missing, or has a name that it cannot have, or an end is no bool.
        """
        given = given_row(step)
        if tuple(given.values) != self._form.names or given.row_shape or given.dim_names:
            given = self._understood(given)
        given, following = self._in_place(given)
        values, truncated = given.values, self._truncated
        ends = _flag(self._terminated, values[self._terminated]), truncated is not None and _flag(truncated, values[truncated])
        return GivenSteps(given, *ends, self._form.observation, following)

    def many(self, steps: Row, number: int | None) -> GivenSteps:
        """So many steps, as `given_rows` takes them; None: any number.

        Raises:
            SchemaError, CodecError: as in `one`. Or it is another number of steps.
            InvalidArgumentError: there is no row dimension, or no step.
        """
        given = self._understood(given_rows(steps))
        rows = given.number
        if number is not None and rows != number:
            raise SchemaError(f"a batch of {rows} steps must be one of {number}: one for each of the writer's n_envs environments")
        given, following = self._in_place(given)
        values, truncated = given.values, self._truncated
        never = np.zeros(rows, bool)
        ends = _flags(self._terminated, values[self._terminated], rows), never if truncated is None else _flags(truncated, values[truncated], rows)
        return GivenSteps(given, *ends, self._form.observation, following)

    def _understood(self, given: Given) -> Given:
        """The steps, whose form is known from now on."""
        names = tuple(given.values)
        if names != self._form.names:
            self._form = _form_of(names, self._trajectories)
        if given.row_shape:
            raise SchemaError(f"a step must have no batch dimension of its own, and this one has {list(given.row_shape)}")
        return given._replace(dim_names=())

    def _in_place(self, given: Given) -> tuple[Given, Mapping[str, Any] | None]:
        """The fields of the steps under their names, and the observations after them."""
        _, _, fields, following = self._form
        values = given.values
        if fields is not None:
            given = given._replace(values={name: values[source] for name, source in fields.items()})
        return given, None if following is None else {name: values[source] for name, source in following.items()}


def _form_of(names: tuple[str, ...], trajectories: Trajectories) -> _Form:
    """What values of these names are to a step.

    Raises:
        SchemaError: a name cannot be that of a field, or a field is missing.
    """
    for name in names:
        if name.partition(".")[0] in STEP_NAMES | WINDOW_NAMES:
            raise SchemaError(f"field {name!r} is reserved: the writer numbers the steps itself, and batches of windows have such fields")
    after = {name.removeprefix(NEXT): name for name in names if name.startswith(NEXT)}
    if not after:
        return _Form(names, _observation(names, trajectories, {}))
    here = {name: name for name in names if not name.startswith(NEXT)}
    observation = _observation(here, trajectories, {name: after[name] for name in after if name not in here})
    of_action = {*trajectories.ends, *([trajectories.reward] if trajectories.reward else [])}
    left_out = {DONE} - of_action if DONE in after else set()
    fields = {**here, **{name: source for name, source in after.items() if name in of_action or name not in here}}
    following = {name: after[name] for name in observation if name in after}
    if following and len(following) < len(observation):
        raise SchemaError(
            f"under 'next' the fields {sorted(set(observation) - following.keys())} are missing: those of final_fields come all, or none"
        )
    kept = {name: source for name, source in fields.items() if name not in left_out}
    return _Form(names, observation, kept, following or None)


def _observation(names: Collection[str], trajectories: Trajectories, after: Mapping[str, str]) -> tuple[str, ...]:
    """The names of an observation's fields, in a step of these fields, and those `after` it.

    Raises:
        SchemaError: a field is missing.
    """
    found: list[str] = []
    for kind, wanted, there in (("ends", trajectories.ends, {*names, *after}), ("final_fields", trajectories.final_fields, names)):
        for parent in wanted:
            named = [name for name in there if name == parent or (kind == "final_fields" and name.startswith(f"{parent}."))]
            if not named:
                raise SchemaError(f"field {parent!r} is missing: it is one of the table's {kind}, which every step has; this one has {sorted(names)}")
            found += named if kind == "final_fields" else []
    return tuple(found)


def _flag(name: str, value: Any) -> bool:
    """Whether an end is true, in one step."""
    if type(value) is bool or type(value) is np.bool_:
        return bool(value)
    return bool(_flags(name, value, 1)[0])


def _flags(name: str, value: Any, rows: int) -> npt.NDArray[np.bool_]:
    """For each step whether an end is true: values of shape [rows] or [rows, 1].

    Raises:
        SchemaError: they are no bools, 0 or 1, one a step.
    """
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().to("cpu", torch.float64).numpy()
        array = np.asarray([np.asarray(part) for part in value] if isinstance(value, list | tuple) else value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.size != rows or array.ndim > 2 or array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        raise SchemaError(f"field {name!r}: {shown(value, 40)} must be one bool a step: whether the episode ended with it")
    return np.asarray(array.reshape(rows), bool)
