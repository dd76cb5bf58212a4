"""The tables that a server's settings name: they are there from the start, and what does not fit is one line that says where it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from children import completed
from conftest import files_under, rows
from tdreplay.errors import FailedPreconditionError, OtherSettingsError
from tdreplay.rate_limiters import SamplesPerInsert, Unlimited
from tdreplay.samplers import Fifo, Prioritized, Uniform
from tdreplay.table_config import TableConfig
from tdreplay.toml_file import line_of
from tdreplay.trajectories import Trajectories
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig, spawn_server

LOCAL = "127.0.0.1:0"
FILE = """
address = "127.0.0.1:0"

[tables.replay]
buffer_size = 1000
sampler = { name = "prioritized", alpha = 0.7 }

[tables.replay.rate_limiter]
name = "samples_per_insert"
samples_per_insert = 4
min_size = 100
error_buffer = 10

[tables.queue]
buffer_size = 50
sampler = "fifo"
max_times_sampled = 1

[tables.steps]
buffer_size = 70
trajectories = true

[tables.pixels]
buffer_size = 80
trajectories = { ends = ["done"], final_fields = ["pixels", "camera.left"], reward = "" }
"""
CONFIGS = {
    "pixels": TableConfig(80, trajectories=Trajectories(("done",), ("pixels", "camera.left"), None), name="pixels"),
    "queue": TableConfig(50, "cpu", Fifo(), Unlimited(), 1, name="queue"),
    "replay": TableConfig(1000, "cpu", Prioritized(0.7), SamplesPerInsert(4, 100, 10), 0, name="replay"),
    "steps": TableConfig(70, trajectories=Trajectories(), name="steps"),
}


def configs(address: str) -> dict[str, TableConfig]:
    """What the tables of a server were made with."""
    found = {}
    for name in RemoteReplayBuffer.tables(address):
        with RemoteReplayBuffer(address, table=name, timeout=10) as buffer:
            found[name] = buffer.describe().config
    return found


def refusal(*arguments: str, **environment: str) -> str:
    """The one line with which the server ends."""
    done = completed("tdreplay-server", "serve", "--until-stdin-closes", "--address", LOCAL, *arguments, **environment)
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert done.stderr.splitlines()[-1].startswith("tdreplay-server: "), done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "server.toml").write_text(FILE)
    return tmp_path / "server.toml"


# -- tables that are there from the start -----------------------------------------------------------------------------------------------------


def test_the_tables_of_a_file_are_there_from_the_start(file, tmp_path):
    for data in (None, tmp_path / "data", tmp_path / "data"):  # Made, in memory and in a directory, and found there.
        with ReplayServer(ServerConfig(config=file, data_dir=data)) as server:
            assert configs(server.address) == CONFIGS


def test_code_and_a_variable_name_tables_as_a_file_does(monkeypatch):
    settings = {name: {**config.to_json(), "sampler": config.sampler} for name, config in CONFIGS.items()}
    assert {name: table.config("cpu") for name, table in ServerConfig(tables=settings).tables.items()} == CONFIGS
    monkeypatch.setenv("TDREPLAY_TABLES", json.dumps({name: config.to_json() for name, config in CONFIGS.items()}))
    assert {name: table.config("cpu") for name, table in ServerConfig().tables.items()} == CONFIGS


def test_a_spawned_server_has_the_tables_of_its_settings(file):
    with spawn_server(ServerConfig(config=file)) as server:
        assert configs(server.address) == CONFIGS


def test_the_table_default_may_be_one_of_them():
    with ReplayServer(ServerConfig(address=LOCAL, tables={"default": {"buffer_size": 7}})) as server, RemoteReplayBuffer(server.address) as buffer:
        assert buffer.buffer_size == 7
        assert RemoteReplayBuffer.tables(server.address) == ["default"]


def test_a_table_that_is_there_keeps_its_rows(tmp_path):
    config = ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"replay": {"buffer_size": 100}})
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, table="replay") as buffer:
        buffer.add_batch(rows(5))
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, table="replay") as buffer:
        assert buffer.size == 5


def test_what_is_not_said_may_be_anything_in_a_table_that_is_there(tmp_path):
    made = {"buffer_size": 100, "sampler": "fifo", "max_times_sampled": 2}
    for said in (made, {"buffer_size": 100}):
        with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"q": said})) as server:
            assert configs(server.address)["q"].sampler == Fifo()


# -- a table that is there with other settings ------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with the table 'replay', of 1000 rows, which are drawn uniformly."""
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"replay": {"buffer_size": 1000}})):
        pass
    return tmp_path / "data"


def test_other_settings_end_the_start_with_a_line_that_names_all_of_them_and_the_place(file, data):
    before = files_under(data)
    said = refusal("--config", str(file), "--data-dir", str(data))
    assert f"tables.replay.sampler from {file}, line 6: {data} holds a table 'replay' with sampler uniform, not prioritized(alpha=0.7); " in said
    assert "rate_limiter none, not samples_per_insert(samples_per_insert=4, min_size=100, error_buffer=10)" in said
    assert "tdreplay table drop replay" in said
    assert files_under(data) == before  # Nor is the other table of the file there.


def test_steps_in_a_table_of_plain_rows_end_the_start(data):
    said = refusal("--data-dir", str(data), TDREPLAY_TABLES='{"replay": {"buffer_size": 1000, "trajectories": true}}')
    assert "tables.replay.trajectories from TDREPLAY_TABLES: " in said
    assert "'replay' with trajectories False, not Trajectories(ends=('terminated', 'truncated'), final_fields=('obs',), reward='reward')" in said
    assert "tdreplay table drop replay" in said


def test_plain_rows_in_a_table_of_steps_end_the_start(tmp_path):
    steps = {"buffer_size": 10, "trajectories": {"ends": ["done"], "final_fields": ["obs"], "reward": "reward"}}
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"steps": steps})):
        pass
    for other in (False, True):
        config = ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"steps": {"buffer_size": 10, "trajectories": other}})
        with pytest.raises(OtherSettingsError, match=r"'steps' with trajectories Trajectories\(ends=\('done',\)"):
            ReplayServer(config).start()
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", tables={"steps": {"buffer_size": 10}})) as server:
        assert configs(server.address)["steps"].trajectories == Trajectories(("done",))


def test_another_capacity_says_how_to_change_it(data):
    said = refusal("--data-dir", str(data), TDREPLAY_TABLES='{"replay": {"buffer_size": 20}}')
    assert "tables.replay.buffer_size from TDREPLAY_TABLES: " in said
    assert "buffer_size 1000, not 20" in said
    assert f"tdreplay-server resize {data} --table replay --buffer-size 20" in said


def test_from_code_it_is_an_error_of_the_same_words(data):
    config = ServerConfig(address=LOCAL, data_dir=data, tables={"replay": {"buffer_size": 1000, "max_times_sampled": 3}})
    with pytest.raises(FailedPreconditionError, match="'replay' with max_times_sampled 0, not 3"):
        ReplayServer(config).start()
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=data)) as server:
        assert configs(server.address)["replay"].sampler == Uniform()


# -- settings that cannot be ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "place", "reason"),
    [
        ("[tables.replay]\nbuffer_size = 0\n", 2, "tables.replay.buffer_size ('0')", "from 1 to"),
        ("[tables.replay]\nsampler = 'fifo'\n", 1, "tables.replay (", "needs a buffer_size"),
        ("[tables.replay]\nbuffer_size = 5\nsampler = 'fi-fo'\n", 3, "tables.replay.sampler ('fi-fo')", "fifo"),
        ("[tables.replay]\nbuffer_size = 5\nsampler = { name = 'fifo', alpha = 1 }\n", 3, "tables.replay.sampler", "has no alpha"),
        ("[tables.replay]\nbuffer_size = 5\n[tables.replay.sampler]\nname = 'prioritized'\nalpha = -1\n", 3, "tables.replay.sampler", "alpha (-1)"),
        ("[tables.replay]\nbuffer_size = 5\nsampler = 7\n", 3, "tables.replay.sampler ('7')", "must be one of"),
        ("[tables.replay]\nbuffer_size = 5\nbuffersize = 7\n", 3, "tables.replay.buffersize ('7')", "buffer_size is"),
        ("[tables.replay]\nbuffer_size = 5\nmax_times_sampled = -1\n", 3, "tables.replay.max_times_sampled ('-1')", "from 0 to"),
        ("[tables.replay]\nbuffer_size = 5\nrate_limiter = 'min_size'\n", 3, "tables.replay.rate_limiter", "needs min_size"),
        ("[tables.r]\nbuffer_size = 5\ntrajectories = 'yes'\n", 3, "tables.r.trajectories ('yes')", "must be True, False, or have ends"),
        ("[tables.r]\nbuffer_size = 5\ntrajectory = true\n", 3, "tables.r.trajectory ('True')", "trajectories is"),
        ("[tables.r]\nbuffer_size = 5\n[tables.r.trajectories]\nend = 'done'\n", 3, "tables.r.trajectories", "has no end: it may have ends"),
        ("[tables.r]\nbuffer_size = 5\ntrajectories = { ends = [] }\n", 3, "tables.r.trajectories", "the number of names in ends (0)"),
        (
            "[tables.r]\nbuffer_size = 5\ntrajectories = true\nmax_times_sampled = 1\n",
            1,
            "tables.r (",
            "max_times_sampled (1) must be 0 in a table of trajectories",
        ),
        ("[tables]\nreplay = 7\n", 2, "tables.replay ('7')", "must be the settings of a table"),
        ("[tables.a]\nbuffer_size = 5\n[tables.'a b']\nbuffer_size = 5\n", 3, "tables.a b ('a b')", "letters, digits"),
        ("tables = 7\n", 1, "tables ('7')", "must be names of tables"),
        (
            "[tables.replay]\nbuffer_size = 5\nrate_limiter = { name = 'min_size', min_size = 6 }\n",
            1,
            "tables.replay (",
            "min_size (6) must not be above buffer_size (5)",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_a_line_with_the_file_the_line_and_the_reason(content, line, place, reason, tmp_path):
    file = tmp_path / "server.toml"
    file.write_text(content)
    said = refusal("--config", str(file))
    assert place in said
    assert f" from {file}, line {line}: " in said
    assert reason in said


@pytest.mark.parametrize("text", ["{", "[1]", '{"replay": 5}', '{"replay": {"buffer_size": 1.5}}', '{"": {"buffer_size": 1}}', "[" * 5000])
def test_a_variable_that_names_no_tables_is_refused(text, monkeypatch):
    monkeypatch.setenv("TDREPLAY_TABLES", text)
    with pytest.raises(ValidationError, match="tables"):
        ServerConfig()


def test_the_table_default_is_not_made_twice():
    with pytest.raises(ValidationError, match="leave one of them out"):
        ServerConfig(buffer_size=5, tables={"default": {"buffer_size": 6}})


def test_more_tables_than_there_may_be_end_the_start():
    assert "max_tables" in refusal("--max-tables", "1", TDREPLAY_TABLES='{"a": {"buffer_size": 1}, "b": {"buffer_size": 1}}')


# -- lines ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("x = 1\n[tables.r]\nsampler = 1\n", 3),
        ("[tables]\nr = { sampler = 1 }\n", 2),
        ("tables.r.sampler = 1\n", 1),
        ("[tables]\nr.sampler = 1\n", 2),
        ("[other.r]\nsampler = 1\n[tables.r.sampler]\nname = 1\n", 3),
        ('[ "tables" . \'r\' ]\n"sampler" = 1\n', 2),
        ("sampler = 1\nr = 1\n", 0),
    ],
)
def test_a_key_below_another_one_is_found(content, line, tmp_path):
    (tmp_path / "f.toml").write_text(content)
    assert line_of(tmp_path / "f.toml", "tables", "r", "sampler") == (f", line {line}" if line else "")
