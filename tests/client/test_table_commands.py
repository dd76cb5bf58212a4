"""The commands ``tdreplay table create | list | describe | drop``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from given_answers import answering_server

from children import completed
from conftest import rows
from tdreplay.errors import TableExistsError
from tdreplay.rate_limiters import SamplesPerInsert
from tdreplay.samplers import Prioritized, Uniform
from tdreplay.table_config import TableConfig
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

PRIORITIZED = (
    *("--buffer-size", "1000", "--sampler", "prioritized", "--alpha", "0.5", "--rate-limiter", "samples_per_insert"),
    *("--samples-per-insert", "4", "--min-size", "100", "--error-buffer", "10"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server for these tests alone."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        yield server.address


def run(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay", "table", *arguments, "--address", address)


def said(address: str, *arguments: str) -> str:
    """What a command prints that succeeds."""
    done = run(address, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(address: str, *arguments: str) -> str:
    """The one line of a command that fails."""
    done = run(address, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("tdreplay: ")
    return done.stderr


def test_a_table_is_created_as_the_options_say(server, table):
    assert said(server, "create", table, *PRIORITIZED) == f"table {table} created\n"
    with RemoteReplayBuffer(server, table=table, timeout=10) as buffer:
        assert buffer.describe().config == TableConfig(1000, "cpu", Prioritized(0.5), SamplesPerInsert(4, 100, 10), 0, name=table)


def test_a_table_that_is_there_with_these_settings_is_left_as_it_is(server, table):
    said(server, "create", table, *PRIORITIZED)
    assert said(server, "create", table, "--buffer-size", "1000") == f"table {table} was there, with these settings\n"
    assert said(server, "create", table, *PRIORITIZED) == f"table {table} was there, with these settings\n"


@pytest.mark.parametrize(
    ("options", "had"),
    [
        (["--trajectories"], Trajectories()),
        (["--no-trajectories"], False),
        ([], False),
        (
            ["--trajectories", "--ends", "done", "--final-field", "pixels", "--final-field", "camera.left", "--reward", "r"],
            Trajectories(("done",), ("pixels", "camera.left"), "r"),
        ),
        (["--trajectories", "--ends", "over,cut", "--reward", ""], Trajectories(("over", "cut"), ("obs",), None)),
    ],
)
def test_a_table_of_trajectories_is_created_as_the_options_say(server, table, options, had):
    assert said(server, "create", table, "--buffer-size", "100", *options) == f"table {table} created\n"
    assert said(server, "create", table, "--buffer-size", "100", *options) == f"table {table} was there, with these settings\n"
    found = json.loads(said(server, "describe", table, "--json"))
    assert TableConfig.from_json(found["config"]).trajectories == had
    page = dict(line.split(maxsplit=1) for line in said(server, "describe", table).splitlines())
    assert page["trajectories"] == (str(had) if had else "no: rows are no steps")


def test_steps_episodes_and_their_returns_are_said_on_the_page():
    steps = pb.TrajectoryState(steps=90, episodes=4, open_episodes=1, transitions=88)
    steps.anchors.add(before=3, steps=5, next_step=True, stride=1, count=40)
    steps.anchors.add(steps=80, whole=True, stride=20, count=7)
    steps.episode_return.CopyFrom(pb.Statistics(count=3, mean=20.5, std=2.25, min=18, max=23))
    config = pb.TableConfig(buffer_size=100, storing_device="cpu", trajectories=pb.Trajectories(ends=["done"], final_fields=["obs"]))

    def describe(_request: pb.DescribeRequest, _context: object) -> pb.DescribeResponse:
        return pb.DescribeResponse(buffer_size=100, size=93, write_count=93, storing_device="cpu", config=config, trajectories=steps)

    with answering_server(Describe=describe) as address:
        lines = [" ".join(line.split()) for line in said(address, "describe", "steps").splitlines()]
        found = json.loads(said(address, "describe", "steps", "--json"))["trajectories"]
    assert lines[-6:] == [
        "steps 90, 88 of them with the observation after them",
        "episodes 4, 1 of them open or abandoned",
        "anchors before 3 steps 5 next_step 40",
        "anchors before 0 steps 80 whole stride 20 7",
        "episode_return mean 20.5, std 2.25, from 18 to 23, of the last 3 episodes that ended",
        "episode_length no episode ended since the server started",
    ]
    assert (found["steps"], found["anchors"][1]["count"], found["episode_return"]["max"]) == (90, 7, 23.0)


def test_a_table_that_has_other_trajectories_is_refused_by_name(server, table):
    said(server, "create", table, "--buffer-size", "10", "--trajectories")
    line = refusal(server, "create", table, "--buffer-size", "10", "--trajectories", "--ends", "done")
    assert f"table {table!r} is there with trajectories Trajectories(ends=('terminated', 'truncated')," in line
    assert "not Trajectories(ends=('done',)," in line
    assert ", not False" in refusal(server, "create", table, "--buffer-size", "10", "--no-trajectories")
    with pytest.raises(TableExistsError, match="trajectories"):
        RemoteReplayBuffer(server, table=table, trajectories=False, timeout=10)
    assert said(server, "create", table, "--buffer-size", "10") == f"table {table} was there, with these settings\n"


def test_all_that_differs_is_said_in_one_line(server, table):
    said(server, "create", table, *PRIORITIZED)
    line = refusal(server, "create", table, "--buffer-size", "10", "--sampler", "fifo", "--max-times-sampled", "2")
    assert "buffer_size 1000, not 10; sampler prioritized(alpha=0.5), not fifo; max_times_sampled 0, not 2" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alpha", "1"], "--alpha needs --sampler"),
        (["--max-size", "1"], "--max-size needs --rate-limiter"),
        (["--sampler", "fifo", "--alpha", "1"], "'fifo' has no alpha"),
        (["--sampler", "prioritized", "--alpha", "-1"], "alpha (-1.0)"),
        (["--sampler", "prioritised"], "sampler ('prioritised')"),
        (["--rate-limiter", "queue"], "needs max_size"),
        (["--rate-limiter", "min_size", "--min-size", "11"], "min_size (11) must not be above buffer_size (10)"),
        (["--max-times-sampled", "-1"], "max_times_sampled (-1)"),
        (["--storing-device", "tape"], "storing_device ('tape')"),
        (["--ends", "done"], "--ends needs --trajectories"),
        (["--final-field", "obs"], "--final-field needs --trajectories"),
        (["--no-trajectories", "--reward", "r"], "--reward needs --trajectories"),
        (["--trajectories", "--ends", "a,b,c"], "the number of names in ends (3)"),
        (["--trajectories", "--ends", "a,"], "ends (['a', '']) must be names of fields"),
        (["--trajectories", "--final-field", "reward"], "each must be another field"),
        (["--trajectories", "--max-times-sampled", "1"], "max_times_sampled (1) must be 0 in a table of trajectories"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_make_nothing(server, table, arguments, words):
    assert words in refusal(server, "create", table, "--buffer-size", "10", *arguments)
    assert table not in RemoteReplayBuffer.tables(server)


@pytest.mark.parametrize("size", ["0", "-5", str((1 << 62) + 1)])
def test_a_capacity_that_cannot_be_is_one_line(server, table, size):
    assert f"buffer_size ({size})" in refusal(server, "create", table, "--buffer-size", size)


def test_the_list_has_a_line_for_each_table():
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        assert said(server.address, "list") == ""
        assert json.loads(said(server.address, "list", "--json")) == []
        said(server.address, "create", "q", "--buffer-size", "7", "--sampler", "fifo", "--max-times-sampled", "1")
        with RemoteReplayBuffer(server.address, table="plain", buffer_size=100, timeout=10) as buffer:
            buffer.add_batch(rows(12))
        said(server.address, "create", "steps", "--buffer-size", "9", "--trajectories")
        lines = [" ".join(line.split()) for line in said(server.address, "list").splitlines()]
        assert lines == [
            "plain 12 of 100 rows uniform none",
            "q 0 of 7 rows fifo none max_times_sampled 1",
            "steps 0 of 9 rows uniform none trajectories",
        ]
        found = json.loads(said(server.address, "list", "--json"))
        assert [(table["table"], table["size"]) for table in found] == [("plain", 12), ("q", 0), ("steps", 0)]


def test_a_table_is_described_on_a_page_and_as_json(server, table):
    with RemoteReplayBuffer(server, table=table, buffer_size=10, timeout=10) as buffer:
        assert json.loads(said(server, "describe", table, "--json"))["schema"] is None
        buffer.add_batch(rows(13))
        buffer.sample_batch(4)
        described = buffer.describe()
    page = dict(line.split(maxsplit=1) for line in said(server, "describe", table).splitlines() if not line.startswith("field"))
    assert (page["table"], page["buffer_size"], page["sampler"], page["rate_limiter"]) == (table, "10", "uniform", "none")
    assert page["size"] == "10, row ids [3, 13), next slot 3"
    assert page["insert_count"].startswith("13, ")
    assert page["sample_count"].startswith("4, ")
    assert page["generation_id"] == described.generation_id
    assert "field obs" in said(server, "describe", table)
    found = json.loads(said(server, "describe", table, "--json"))
    assert TableConfig.from_json(found["config"]) == TableConfig(10, "cpu", Uniform())
    assert (found["size"], found["write_count"], found["sample_count"], found["storing_device"]) == (10, 13, 4, "cpu")
    assert found["inserts"] == found["samples"] == {"waiting": 0, "seconds": 0.0, "waits_for": ""}


@pytest.mark.parametrize("command", [["describe"], ["drop"], ["drop", "--yes"]])
def test_a_table_that_is_not_there_is_one_line(server, command):
    assert "'none' is not there" in refusal(server, *command, "none")


def test_a_table_is_dropped_where_the_answer_is_yes(server, table):
    said(server, "create", table, "--buffer-size", "10")
    done = run(server, "drop", table)  # Nobody answers.
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert f"Drop table {table} with 0 rows?" in done.stderr
    assert table in RemoteReplayBuffer.tables(server)
    assert said(server, "drop", table, "--yes") == f"table {table} dropped\n"
    assert table not in RemoteReplayBuffer.tables(server)


@pytest.mark.parametrize("command", [["create", "x", "--buffer-size", "5"], ["list"], ["describe", "x"], ["drop", "x", "--yes"]])
def test_an_address_and_a_timeout_that_cannot_be_are_one_line(command):
    assert "address ('here') must be HOST:PORT" in refusal("here", *command)
    assert "timeout (nan)" in refusal("127.0.0.1:1", *command, "--timeout", "nan")
