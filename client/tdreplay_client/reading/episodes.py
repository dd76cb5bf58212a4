"""Episodes: the list of them, and the rows of one."""

from __future__ import annotations

import time

from tensordict import TensorDict

from tdreplay.errors import OverwrittenError
from tdreplay.limits import MAX_INT64
from tdreplay.trajectory_messages import episode_from_message
from tdreplay.trajectory_state import Episode
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.assembly import only_batch
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["episode_rows", "listed_episodes"]


def listed_episodes(connection: Connection, table: str) -> list[Episode]:
    """The episodes of a table, by ascending first row. Errors: as `BaseReplayBuffer.episodes`."""
    return connection.retried(lambda budget: _listed(connection, table, budget))


def _listed(connection: Connection, table: str, budget: RetryBudget) -> list[Episode]:
    answers = connection.stream("ListEpisodes", pb.ListEpisodesRequest(table=table), budget)
    try:
        return [episode_from_message(message) for answer in answers for message in answer.episodes]
    finally:
        answers.close()


def episode_rows(connection: Connection, table: str, episode_id: int, transfer: DeviceTransfer) -> tuple[TensorDict, bool]:
    """The rows of an episode, in order, and whether the last one is the final observation. Errors: as `BaseReplayBuffer.episode`."""
    until = time.monotonic() + connection.timeout
    request = pb.SampleEpisodeRequest(table=table, episode_id=episode_id)
    while True:
        try:
            return connection.retried(lambda budget: _rows(connection, request, transfer, budget))
        except OverwrittenError:  # Its first steps, while the others were on their way.
            if time.monotonic() >= until:
                raise


def _rows(connection: Connection, request: pb.SampleEpisodeRequest, transfer: DeviceTransfer, budget: RetryBudget) -> tuple[TensorDict, bool]:
    batch = only_batch(connection.stream("SampleEpisode", request, budget), pb.SampleEpisodeResponse, transfer, range(1, MAX_INT64))
    return batch.take(), batch.head.has_final
