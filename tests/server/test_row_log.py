"""The row log tells which rows become live and which are not live any more: a listener that counts along knows the live rows at any time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdreplay.errors import FailedPreconditionError, MissingRowsError, SchemaError
from tdreplay.rate_limiters import MinSize
from tdreplay.samplers import Prioritized
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server import ReplayBuffer
from tdreplay_server.durability.insert import Insert
from tdreplay_server.durability.row_listeners import Unheard
from tdreplay_server.durability.row_log import RowLog

SLOTS = 8


class Counting(Unheard):
    """A listener that knows the ids of the live rows."""

    def __init__(self) -> None:
        self.live: set[int] = set()

    def inserted(self, ids: range) -> None:
        assert ids
        assert self.live.isdisjoint(ids)
        self.live.update(ids)

    def evicted(self, ids: range) -> None:
        assert ids
        assert self.live.issuperset(ids)
        self.live.difference_update(ids)


def insert(log: RowLog, count: int, dtype: torch.dtype = torch.int64) -> None:
    columns = {"number": torch.arange(count, dtype=dtype)}
    log.insert(Insert(columns, Schema.of(columns, ()), count))


def rewind(log: RowLog, size: int, back: int) -> None:
    """To `size` rows before the last `back` ones; where not all of them are stored nothing changes."""
    end = max(0, log.ring.write_count - back)
    try:
        log.rewind(log.ring.buffer_size, min(size, end, log.ring.buffer_size), end)
    except MissingRowsError:
        return


steps = st.lists(
    st.one_of(
        st.builds(lambda count: lambda log: insert(log, count), st.integers(1, 3 * SLOTS)),
        st.builds(lambda size: lambda log: log.reset(size), st.integers(1, 2 * SLOTS)),
        st.builds(lambda size, back: lambda log: rewind(log, size, back), st.integers(0, SLOTS), st.integers(0, SLOTS)),
    ),
    max_size=12,
)


@given(steps)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_listener_knows_the_live_rows_after_every_step(taken: list[Callable[[RowLog], None]]):
    counting = Counting()
    with closing(RowLog(TableConfig(SLOTS), counting)) as log:
        for step in taken:
            step(log)
            assert counting.live == set(range(log.ring.oldest, log.ring.write_count))


def test_a_listener_hears_of_the_rows_that_a_directory_had(tmp_path: Path):
    with closing(RowLog(TableConfig(SLOTS), Counting(), directory=tmp_path / "table")) as log:
        insert(log, 11)
    counting = Counting()
    with closing(RowLog(TableConfig(SLOTS), counting, directory=tmp_path / "table")):
        assert counting.live == set(range(3, 11))


def test_an_insert_that_is_refused_tells_nothing():
    counting = Counting()
    with closing(RowLog(TableConfig(SLOTS), counting)) as log:
        insert(log, 5)
        with pytest.raises(SchemaError):
            insert(log, 2, torch.float32)
        assert counting.live == set(range(5))


@pytest.mark.parametrize("other", [{"sampler": Prioritized()}, {"rate_limiter": MinSize(2)}, {"max_times_sampled": 1}])
def test_a_directory_of_a_table_with_other_settings_is_refused(tmp_path: Path, other: dict[str, object]):
    with closing(RowLog(TableConfig(SLOTS, **other), Counting(), directory=tmp_path / "table")):
        pass
    with pytest.raises(FailedPreconditionError, match=r"holds a table with \w+ .+, not "):
        ReplayBuffer("cpu", "cpu", SLOTS, directory=tmp_path / "table")
