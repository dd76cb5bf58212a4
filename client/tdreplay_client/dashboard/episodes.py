"""Episodes of a table: the list of the newest ones, and the steps of one."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensordict import TensorDict

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.system_fields import ROW_ID, STEP, STEP_KIND, StepKind
from tdreplay.trajectory_messages import episode_from_message
from tdreplay.trajectory_state import Episode
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.dashboard.fields import inline, user_fields, values_to_json
from tdreplay_client.dashboard.histograms import histogram
from tdreplay_client.dashboard.limits import MAX_EPISODES, MAX_STEPS, PAGE_ROWS, SHOWN_ELEMENTS, STEP_BYTES
from tdreplay_client.dashboard.numbers import as_json
from tdreplay_client.dashboard.tables import RowReader
from tdreplay_client.reading.assembly import only_batch

__all__ = ["episode_histograms", "episode_page", "episode_steps"]


def newest_episodes(reader: RowReader, name: str) -> list[Episode]:
    """The newest episodes of which a step is stored, at most `MAX_EPISODES`, the newest first."""
    with reader.running:
        answers = reader.connection.stream("ListEpisodes", pb.ListEpisodesRequest(table=name, newest=MAX_EPISODES))
        try:
            found = [episode_from_message(message) for message in next(answers, pb.ListEpisodesResponse()).episodes]
        finally:
            answers.close()
    return found[::-1]


def episode_page(episodes: list[Episode], offset: int, limit: int) -> dict[str, Any]:
    """A page of the list of episodes.

    Raises:
        InvalidArgumentError: `limit` is below 1 or above `PAGE_ROWS`, or `offset` is below 0.
    """
    if not 1 <= limit <= PAGE_ROWS or offset < 0:
        raise InvalidArgumentError(f"limit ({limit}) must be from 1 to {PAGE_ROWS}, and offset ({offset}) at least 0")
    return {"listed": len(episodes), "offset": offset, "episodes": [_to_json(episode) for episode in episodes[offset : offset + limit]]}


def _to_json(episode: Episode) -> dict[str, Any]:
    said = {name: as_json(value) if isinstance(value, (int, float)) else value for name, value in episode.to_json().items()}
    return {**said, "episode_id": str(episode.episode_id)}


def episode_histograms(episodes: list[Episode]) -> dict[str, Any]:
    """Histograms of the returns and the lengths of those that ended and whose first step is stored."""
    whole = [episode for episode in episodes if episode.ended in ("terminated", "truncated") and not episode.first_step]
    returns = np.array([episode.episode_return for episode in whole if episode.episode_return is not None], np.float64)
    lengths = np.array([episode.steps for episode in whole], np.int64)
    known = [("episode_return", returns), ("episode_length", lengths)]
    return {"episodes": len(whole), "fields": [{"field": name, "what": name, **histogram(values)} for name, values in known if len(values)]}


def episode_steps(reader: RowReader, name: str, episode_id: int) -> dict[str, Any]:
    """The steps of an episode, in order: their ids, numbers and small values. The final observation has only its id.

    Raises:
        InvalidArgumentError: it has more than `MAX_STEPS` steps.
    """
    table = reader.described(name)
    chosen = inline(user_fields(table), STEP_BYTES, STEP_BYTES)
    names = [ROW_ID.name, STEP.name, STEP_KIND.name, *(field.name for field in chosen)]
    rows, has_final = _read(reader, name, episode_id, names)
    steps = rows[: rows.batch_size[0] - has_final]
    kinds = steps[STEP_KIND.name].tolist()
    trajectories = table.config.trajectories
    return {
        "generation": table.generation_id,
        "episode_id": str(episode_id),
        "reward": (trajectories.reward if trajectories else None) or "",
        "row_id": steps[ROW_ID.name].tolist(),
        "step": steps[STEP.name].tolist(),
        "ended": _ended(kinds[-1] if kinds else 0),
        "final_row_id": rows[ROW_ID.name][-1].item() if has_final else None,
        "values": values_to_json(steps, chosen, SHOWN_ELEMENTS) if kinds else [],
    }


def _read(reader: RowReader, name: str, episode_id: int, fields: list[str]) -> tuple[TensorDict, bool]:
    request = pb.SampleEpisodeRequest(table=name, episode_id=episode_id, fields=fields)
    with reader.running:
        try:
            answers = reader.connection.stream("SampleEpisode", request)
            batch = only_batch(answers, pb.SampleEpisodeResponse, reader.transfer, range(1, MAX_STEPS + 2))
        except CodecError as error:
            raise InvalidArgumentError(f"episode {episode_id} cannot be shown, of which at most {MAX_STEPS} steps are: {error}") from None
    return batch.take(), batch.head.has_final


def _ended(kind: int) -> str:
    return "terminated" if kind & StepKind.TERMINATED else "truncated" if kind & StepKind.TRUNCATED else ""
