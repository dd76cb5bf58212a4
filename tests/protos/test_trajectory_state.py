"""What a table of trajectories says of itself: values, messages and JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tdreplay.description_messages import description_from_message, description_to_message
from tdreplay.table_config import TableConfig
from tdreplay.table_description import TableDescription
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_messages import episode_from_message, episode_to_message
from tdreplay.trajectory_state import Anchors, Episode, Statistics, TrajectoryState
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.windows import AnchorRule

STATE = TrajectoryState(
    steps=90,
    episodes=4,
    open_episodes=1,
    transitions=88,
    anchors=(Anchors(3, 5, True, False, 2, 40), Anchors(0, 80, False, True, 1, 7)),
    episode_return=Statistics(3, 20.5, 2.25, 18.0, 23.0),
    episode_length=Statistics(3, 30.0, 1.5, 28.0, 32.0),
)
DESCRIPTION = TableDescription(
    buffer_size=100,
    size=93,
    pointer=93,
    write_count=93,
    storing_device=torch.device("cpu"),
    schema=None,
    config=TableConfig(100, trajectories=Trajectories(), name="steps"),
    trajectories=STATE,
)


def through_a_message(description: TableDescription) -> TableDescription:
    """What a client makes of a server's answer."""
    answer = pb.DescribeResponse.FromString(description_to_message(description).SerializeToString())
    return description_from_message(answer, "steps")


@pytest.mark.parametrize("state", [STATE, TrajectoryState(), None])
def test_steps_and_episodes_come_as_they_were_said(state):
    said = replace(DESCRIPTION, trajectories=state)
    assert through_a_message(said) == said


def test_they_are_json():
    found = json.loads(json.dumps(DESCRIPTION.to_json()))
    assert found["config"]["trajectories"] == {"ends": ["terminated", "truncated"], "final_fields": ["obs"], "reward": "reward"}
    steps = found["trajectories"]
    assert (steps["steps"], steps["episodes"], steps["open_episodes"], steps["transitions"]) == (90, 4, 1, 88)
    assert steps["anchors"][0] == {"before": 3, "steps": 5, "next_step": True, "whole": False, "stride": 2, "count": 40}
    assert steps["episode_return"] == {"count": 3, "mean": 20.5, "std": 2.25, "min": 18.0, "max": 23.0}
    assert replace(DESCRIPTION, trajectories=None).to_json()["trajectories"] is None


@pytest.mark.parametrize("episode_return", [None, 0.0, -1.5])
@pytest.mark.parametrize("ended", ["", "terminated", "truncated", "abandoned"])
def test_an_episode_comes_as_it_was_said(episode_return, ended):
    episode = Episode((1 << 63) - 1, 2**40, 7, 30, episode_return, ended, ended == "truncated")
    message = pb.Episode.FromString(episode_to_message(episode).SerializeToString())
    assert episode_from_message(message) == episode
    assert json.loads(json.dumps(episode.to_json()))["episode_return"] == episode_return


def test_anchors_are_those_of_a_rule():
    rule = AnchorRule(3, 5, True, True, 2)
    assert Anchors.of(rule, 9).rule == rule
    assert Anchors.of(rule, 9).count == 9
