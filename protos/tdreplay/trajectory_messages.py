"""Steps and episodes of a table, to protobuf messages and back."""

from __future__ import annotations

from typing import Any

from tdreplay.trajectory_state import Anchors, Episode, Statistics, TrajectoryState
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["episode_from_message", "episode_to_message", "trajectory_state_from_message", "trajectory_state_to_message"]

COUNTS = ("steps", "episodes", "open_episodes", "transitions")
"""What has the same name and value in both."""


def trajectory_state_to_message(state: TrajectoryState) -> pb.TrajectoryState:
    """The message that describes the steps and episodes of a table."""
    return pb.TrajectoryState(
        anchors=[pb.Anchors(**vars(anchors)) for anchors in state.anchors],
        episode_return=pb.Statistics(**vars(state.episode_return)),
        episode_length=pb.Statistics(**vars(state.episode_length)),
        **{name: getattr(state, name) for name in COUNTS},
    )


def trajectory_state_from_message(message: pb.TrajectoryState) -> TrajectoryState:
    """What a message says of the steps and episodes of a table."""
    return TrajectoryState(
        anchors=tuple(Anchors(**_fields(anchors)) for anchors in message.anchors),
        episode_return=Statistics(**_fields(message.episode_return)),
        episode_length=Statistics(**_fields(message.episode_length)),
        **{name: getattr(message, name) for name in COUNTS},
    )


def episode_to_message(episode: Episode) -> pb.Episode:
    """The message that describes an episode. A return that is None is not set."""
    return pb.Episode(**vars(episode))


def episode_from_message(message: pb.Episode) -> Episode:
    """What a message says of an episode."""
    return Episode(**_fields(message) | {"episode_return": message.episode_return if message.HasField("episode_return") else None})


def _fields(message: Any) -> dict[str, Any]:
    """The value of each field, by its name. One that is not set has its default."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
