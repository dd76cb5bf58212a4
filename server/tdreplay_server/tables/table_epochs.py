"""Epochs over a table of this process."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from tdreplay.epochs import START, EpochPlace, EpochPlan, Epochs
from tdreplay.processes import Owner
from tdreplay.views import TableView
from tdreplay_server.tables.batches import as_batch
from tdreplay_server.tables.table import Table

__all__ = ["TableEpochs"]


class TableEpochs(Epochs):
    """The batches of some epochs over a table. Each is read when it is asked for.

    Args:
        table: Has the rows.
        plan: Which rows come.
        owner: The process that may use the table.
        device: Where the batches go.
        view: What is made of their windows. None: the rows come as they are.

    Raises:
        FieldNotFoundError: a field is not there.
    """

    def __init__(self, table: Table, plan: EpochPlan, owner: Owner, device: torch.device, view: TableView | None = None) -> None:
        super().__init__(plan, view)
        self._table, self._owner, self._device = table, owner, device
        self._batches = table.epochs(plan, START)

    def _go_to(self, plan: EpochPlan, place: EpochPlace) -> None:
        self._owner.check()
        self._batches = self._table.epochs(plan, place)

    def _next(self) -> tuple[TensorDict | None, EpochPlace]:
        self._owner.check()
        place = self._place
        while not self._plan.is_over(place):
            batch, columns = self._batches.take(place)
            place = batch.after
            if columns:
                return as_batch(columns, batch.rows, self._device), place
        return None, place

    def _break_off(self) -> None:
        """Nothing was read ahead."""

    def _end(self) -> None:
        """It holds nothing."""
