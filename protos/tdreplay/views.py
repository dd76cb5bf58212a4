"""Views: what a client makes of the windows that come with drawn steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.limits import shown
from tdreplay.schema import Columns, DimNames
from tdreplay.system_fields import DRAWN_NAMES, SYSTEM_NAMES, WINDOW_AFTER, WINDOW_BEFORE, WINDOW_NAMES
from tdreplay.trajectories import Trajectories
from tdreplay.windows import WindowQuery

__all__ = ["TableView", "View", "WindowColumns", "check_view", "made_of", "nearest"]

Found = TypeVar("Found")


class View(ABC):
    """Says which windows come with each anchor, and makes a batch of them.

    A view is a value. It knows no table, and can be used for any number of them.
    """

    @abstractmethod
    def query(self, trajectories: Trajectories) -> WindowQuery:
        """The windows that this view needs of a table.

        Args:
            trajectories: What the table knows of its episodes.

        Raises:
            InvalidArgumentError: the view does not fit the table.
        """

    @abstractmethod
    def made_of(self, windows: WindowColumns, trajectories: Trajectories) -> TensorDict:
        """As `build`, of columns."""

    def build(self, batch: TensorDict, trajectories: Trajectories) -> TensorDict:
        """The batch that this view makes of windows.

        Args:
            batch: Windows as `query` asks for them, of batch size [n]. A field of a window has shape [n, steps, *field shape].
            trajectories: What the table knows of its episodes.

        Returns:
            A batch on the same device. Its values are views of those of `batch` where strides allow it.

        Raises:
            CodecError: these are not the windows.
        """
        return self.made_of(WindowColumns.of(batch), trajectories)

    def to_json(self) -> dict[str, Any]:
        """The name of the view and its arguments, as JSON values."""
        return {"view": type(self).__name__, **vars(self)}


def check_view(view: object) -> View:
    """`view`, which must be a `View`.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(view, View):
        raise InvalidArgumentError(f"view ({shown(view)}) must be Transitions(...), Sequences(...) or None")
    return view


@dataclass(frozen=True)
class TableView:
    """A view of one table.

    Attributes:
        view: The view.
        trajectories: What the table knows of its episodes.
    """

    view: View
    trajectories: Trajectories

    @cached_property
    def windows(self) -> WindowQuery:
        """The windows to ask for."""
        return self.view.query(self.trajectories)

    def build(self, batch: TensorDict) -> TensorDict:
        """The batch that the view makes of windows."""
        return self.view.build(batch, self.trajectories)

    def made_of(self, columns: Columns, batch_size: tuple[int, ...], device: torch.device, dim_names: DimNames = ()) -> TensorDict:
        """The batch that the view makes of columns of windows on `device`: in place of `to_tensordict`."""
        return self.view.made_of(WindowColumns(columns, batch_size[0], device), self.trajectories)


def made_of(batch: TensorDict, view: TableView | None) -> TensorDict:
    """What a view makes of a batch; None: the batch as it is."""
    return batch if view is None else view.build(batch)


class WindowColumns:
    """The fields of a batch of windows.

    Attributes:
        rows: The number of anchors.
        device: Where they are.
        before, after: How much of each anchor's window is there, int64 of shape [rows].
        anchors: The fields with one value for each anchor.
        steps: The fields with windows.

    Args:
        columns: The name of a field, nested keys joined with '.' -> its values.
        rows: The number of anchors.
        device: Where they are.

    Raises:
        CodecError: they are no windows.
    """

    def __init__(self, columns: Columns, rows: int, device: torch.device) -> None:
        missing = [field.name for field in (WINDOW_BEFORE, WINDOW_AFTER) if field.name not in columns]
        if missing:
            raise CodecError(f"a batch with {sorted(columns)} must be windows of n anchors, with {missing}")
        self.rows, self.device = rows, device
        self.before, self.after = columns[WINDOW_BEFORE.name], columns[WINDOW_AFTER.name]
        own = {name: value for name, value in columns.items() if name not in WINDOW_NAMES}
        self.anchors = {name: value for name, value in own.items() if _is_of_anchors(name, value)}
        self.steps = {name: value for name, value in own.items() if name not in self.anchors}

    @classmethod
    def of(cls, batch: TensorDictBase) -> WindowColumns:
        """Those of a TensorDict of batch size [n].

        Raises:
            CodecError: it is no batch of windows.
        """
        columns: dict[str, torch.Tensor] = {}
        _flatten(batch, "", columns)
        if batch.batch_dims != 1:
            raise CodecError(f"a batch of batch_size {list(batch.batch_size)} must be windows of n anchors")
        device = next(iter(columns.values())).device if columns else torch.device("cpu")
        return cls(columns, int(batch.batch_size[0]), device)

    def check(self, name: str, length: int) -> torch.Tensor:
        """The window of a field, which must have so many steps.

        Raises:
            CodecError: it has not, or there is none.
        """
        value = self.steps.get(name)
        if value is None or value.shape[1:2] != (length,):
            came = None if value is None else list(value.shape)
            raise CodecError(f"field {name!r} came with shape {came}, and {length} steps of each anchor were asked for")
        return value


def nearest(name: str, known: Mapping[str, Found]) -> Found | None:
    """What `known` says of a field: of its name, or else of its nearest parent. None: nothing."""
    while name not in known and name:
        name = name.rpartition(".")[0]
    return known.get(name)


def _is_of_anchors(name: str, value: torch.Tensor) -> bool:
    return name in SYSTEM_NAMES or (name in DRAWN_NAMES and value.dim() == 1)


def _flatten(batch: TensorDictBase, prefix: str, found: dict[str, torch.Tensor]) -> None:
    for key, value in batch.items():
        if isinstance(value, TensorDictBase):
            _flatten(value, f"{prefix}{key}.", found)
        else:
            found[prefix + key] = value
