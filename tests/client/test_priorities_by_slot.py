"""Rows by slot bring their priorities, and a list of episodes its newest part: what somebody needs who only looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from episode_rows import taken_step

from conftest import rows
from tdreplay.errors import InvalidArgumentError, NoPrioritiesError
from tdreplay.transitions import Transitions
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.window_messages import window_query_to_message
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.slots import rows_in_slots
from tdreplay_client.transport.connection import Connection

TRANSFER = DeviceTransfer(torch.device("cpu"))


@pytest.fixture
def connection(address):
    opened = Connection(address, 10)
    yield opened
    opened.close()


@pytest.mark.parametrize("sampler", [{"name": "prioritized", "alpha": 0.5}, "max_heap", "min_heap"])
def test_rows_by_slot_bring_the_priorities_that_they_have_now(address, table, connection, sampler):
    with RemoteReplayBuffer(address, table=table, buffer_size=8, sampler=sampler, timeout=10) as buffer:
        buffer.add_batch(rows(12), priorities=np.arange(12.0))
        buffer.update_priorities([11, 5], [0.25, 7.5])
        found = rows_in_slots(connection, table, [3, 5, 0, 3], ["row_id", "action"], TRANSFER, with_priorities=True)
        assert found["row_id"].tolist() == [11, 5, 8, 11]
        assert found["action"].tolist() == [11, 5, 8, 11]
        assert found["priority"].dtype == torch.float64
        assert found["priority"].tolist() == [0.25, 7.5, 8.0, 0.25]
        assert "priority" not in rows_in_slots(connection, table, [3], ["row_id"], TRANSFER)


def test_so_do_many_rows_in_several_messages_and_steps(address, table, connection):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, sampler="prioritized", trajectories={"reward": ""}, timeout=10) as buffer:
        with buffer.trajectory_writer(autoreset="same_step") as writer:
            for number in range(60):
                step, after = taken_step(number, width=50_000)
                writer.append(step, final=after)
        buffer.update_priorities(range(50), np.arange(50.0))
        found = rows_in_slots(connection, table, range(50), ["obs", "row_id"], TRANSFER, with_priorities=True)
        assert found["priority"].tolist() == found["row_id"].tolist() == list(range(50))


def test_a_table_without_priorities_says_so(address, table, connection):
    with RemoteReplayBuffer(address, table=table, buffer_size=8, timeout=10) as buffer:
        buffer.add_batch(rows(4))
        with pytest.raises(NoPrioritiesError):
            rows_in_slots(connection, table, [0], ["row_id"], TRANSFER, with_priorities=True)


def test_windows_come_without_priorities(address, table, connection):
    with RemoteReplayBuffer(address, table=table, buffer_size=8, sampler="prioritized", trajectories=True, timeout=10) as buffer:
        around = window_query_to_message(Transitions().query(buffer.describe().config.trajectories))
        asked = pb.SampleByIndexRequest(table=table, index=[0], windows=around, with_priorities=True)
        with pytest.raises(InvalidArgumentError, match="with_priorities"):
            list(connection.stream("SampleByIndex", asked))


def test_the_newest_episodes_are_the_end_of_the_list(address, table, connection):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, trajectories={"reward": ""}, timeout=10) as buffer:
        with buffer.trajectory_writer(autoreset="same_step") as writer:
            for number in range(40):
                step, after = taken_step(number)
                writer.append(step, final=after)
        everything = [episode.episode_id for episode in buffer.episodes()]

        def newest(count: int) -> list[int]:
            answers = connection.stream("ListEpisodes", pb.ListEpisodesRequest(table=table, newest=count))
            return [episode.episode_id for answer in answers for episode in answer.episodes]

        assert [newest(count) for count in (0, 1, 4, 100)] == [everything, everything[-1:], everything[-4:], everything]
        with pytest.raises(InvalidArgumentError, match="newest"):
            newest(-1)
