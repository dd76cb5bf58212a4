"""A server knows which shard of which cluster it is, and its data directory is of no other from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from children import completed
from conftest import files_under, rows
from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_server import ReplayServer, ServerConfig

LOCAL = "127.0.0.1:0"
VARIABLES = {"TDREPLAY_CLUSTER": "atari.v5", "TDREPLAY_SHARD": "16383"}


def server(data_dir: Path | None = None, **settings: Any) -> ReplayServer:
    return ReplayServer(ServerConfig(address=LOCAL, data_dir=data_dir, **settings))


def said(data_dir: Path | None = None, **settings: Any) -> tuple[str, int | None]:
    """The cluster and the shard that a server says it is of, which stored some rows."""
    with server(data_dir, **settings) as started, ShardTable(started.address, buffer_size=10) as table:
        table.add_batch(rows(3))
        answer = table.answer()
        return answer.cluster, answer.shard if answer.HasField("shard") else None


def test_a_server_says_which_shard_it_is():
    assert said() == ("", None)
    assert said(cluster="a") == ("a", None)
    assert said(shard=0) == ("", 0)
    assert said(cluster="A_1-b.c" * 9, shard=16383) == ("A_1-b.c" * 9, 16383)


def test_the_settings_come_from_the_environment_and_a_file_too(monkeypatch, tmp_path):
    (tmp_path / "server.toml").write_text('cluster = "a"\nshard = 3\n')
    assert ServerConfig(config=tmp_path / "server.toml").shard == 3
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = ServerConfig()
    assert (found.cluster, found.shard) == ("atari.v5", 16383)


@pytest.mark.parametrize(
    "settings",
    [
        *[{"cluster": value} for value in ("a b", "a/b", "é", "a" * 65, "a\n", 3)],
        *[{"shard": value} for value in (-1, 16384, True, "x", 0.5)],
    ],
)
def test_names_and_numbers_that_cannot_be_are_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        ServerConfig(**settings)


def test_config_show_says_both():
    done = completed("tdreplay-server", "config", "show", "--cluster", "a", **VARIABLES)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["cluster", "a", "--cluster"] in lines
    assert ["shard", "16383", "TDREPLAY_SHARD"] in lines


def test_a_directory_remembers_which_shard_it_is_of(tmp_path):
    assert said(tmp_path, cluster="a", shard=3) == ("a", 3)
    assert said(tmp_path, cluster="a", shard=3) == ("a", 3)
    assert said(tmp_path) == ("a", 3)  # A server that was not told is what the directory is of.


@pytest.mark.parametrize(
    ("settings", "other"), [({"shard": 4}, "shard 4"), ({"cluster": "b"}, "cluster 'b'"), ({"cluster": "b", "shard": 3}, "shard 3 of")]
)
def test_a_directory_of_another_shard_is_refused_and_nothing_in_it_changes(tmp_path, settings, other):
    assert said(tmp_path, cluster="a", shard=3) == ("a", 3)
    before = files_under(tmp_path)
    with pytest.raises(FailedPreconditionError, match=rf"is of shard 3 of cluster 'a', and the server is started as {other}"):
        server(tmp_path, **settings).start()
    assert files_under(tmp_path) == before
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    done = completed("tdreplay-server", "config", "check", "--address", LOCAL, "--data-dir", tmp_path, *options)
    assert done.returncode == 2
    assert "is of shard 3 of cluster 'a'" in done.stderr
    assert said(tmp_path, cluster="a", shard=3) == ("a", 3)


def test_a_directory_without_a_mark_takes_what_it_is_given(tmp_path):
    assert said(tmp_path) == ("", None)
    assert not (tmp_path / "SHARD").exists()  # As older versions made it.
    assert said(tmp_path, shard=2) == ("", 2)
    assert said(tmp_path, cluster="a") == ("a", 2)
    with pytest.raises(FailedPreconditionError, match=r"is of shard 2 of cluster 'a', and the server is started as shard 1:"):
        server(tmp_path, shard=1).start()


def test_verify_says_which_shard_a_directory_is_of(tmp_path):
    said(tmp_path, cluster="a", shard=3)
    assert f"data directory {tmp_path}, shard 3 of cluster 'a', tables: 1" in completed("tdreplay-server", "verify", tmp_path).stdout


def test_a_mark_that_was_half_written_when_the_server_died_is_written_anew(tmp_path):
    (tmp_path / ".SHARD.new").write_text("{")
    assert said(tmp_path, shard=3) == ("", 3)
    assert not (tmp_path / ".SHARD.new").exists()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"version": 1, "cluster": 3}', '{"version": 1, "shard": -1}', '{"version": "1"}', "[" * 100_000, "\xff"]
)
def test_a_mark_that_is_not_what_was_written_is_refused(tmp_path, text):
    said(tmp_path, shard=3)
    (tmp_path / "SHARD").write_bytes(text.encode("latin1"))
    with pytest.raises(CorruptDataError, match="SHARD is not what was written"):
        server(tmp_path, shard=3).start()


def test_a_mark_of_a_newer_version_is_refused(tmp_path):
    said(tmp_path, shard=3)
    (tmp_path / "SHARD").write_text(json.dumps({"version": 2, "cluster": "a", "shard": 3, "zone": "b"}))
    with pytest.raises(FailedPreconditionError, match="a newer version of tdreplay"):
        server(tmp_path, shard=3).start()
