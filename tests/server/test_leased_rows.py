"""Leased rows that are overwritten before they were read."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from tdreplay.errors import RateLimitedError, TableChangedError
from tdreplay.samplers import Fifo
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server.tables.draws import generators_of
from tdreplay_server.tables.selection import BatchQuery
from tdreplay_server.tables.table import Table


def insert(table, count):
    columns = {"number": torch.arange(count) + table.state().write_count}
    table.insert(columns, Schema.of(columns, ()), count)


def draw(table, rows, batches=1):
    return table.draw(BatchQuery(rows), batches, generators_of(0))


def test_a_leased_row_that_was_overwritten_is_leased_no_more():
    with closing(Table(TableConfig(8, sampler=Fifo(), max_times_sampled=1))) as table:
        insert(table, 8)
        drawn = draw(table, 4)
        insert(table, 2)
        assert table.take(drawn.selection)["number"].tolist() == [4, 5, 2, 3]
        description = table.describe()
        assert (description.leased, description.available) == (4, 4)
        drawn.leases[0].taken()
        description = table.describe()
        assert (description.leased, description.available, description.size) == (0, 4, 4)
        assert table.take(draw(table, 4).selection)["number"].tolist() == [6, 7, 8, 9]
        with pytest.raises(RateLimitedError, match="a batch takes 1 rows, 0 are there, and batches with 4 rows are on their way"):
            draw(table, 1)


def test_a_batch_whose_rows_were_overwritten_while_there_are_no_others_is_drawn_again():
    with closing(Table(TableConfig(8, sampler=Fifo(), max_times_sampled=1))) as table:
        insert(table, 8)
        drawn = draw(table, 4, 2)
        insert(table, 2)
        others = draw(table, 2)
        with pytest.raises(TableChangedError, match="2 rows of a batch were overwritten before they were read, and there are no others"):
            table.take(drawn.selection)
        leases = (*drawn.leases, *others.leases)
        for lease in leases:
            lease.offer()
        for lease in leases:
            lease.free()
        description = table.describe()
        assert (description.leased, description.available) == (0, 8)
        assert table.take(draw(table, 8).selection)["number"].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
