"""``tdreplay-server config check`` and ``config show``."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

import pytest
import trustme

from children import completed
from conftest import files_under
from tdreplay.errors import InvalidArgumentError
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.system.certificate_dates import validity

FREE = ("--address", "127.0.0.1:0")


def config(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay-server", "config", *arguments, **environment)


def problems(*arguments: object, status: int = 2, **environment: str) -> list[str]:
    """The lines that a check says on standard error, all of them after its name."""
    done = config("check", *arguments, **environment)
    assert done.returncode == status, done.stderr
    assert done.stdout == ("" if status else "a server can be started with these settings\n")
    lines = done.stderr.splitlines()
    assert all(line.startswith("tdreplay-server: ") for line in lines), done.stderr
    return [line.removeprefix("tdreplay-server: ") for line in lines]


def certificate(directory: Path, expires: datetime.datetime | None = None) -> tuple[Path, Path]:
    """The files of a certificate and its key."""
    made = trustme.CA().issue_cert("localhost", not_after=expires) if expires else trustme.CA().issue_cert("localhost")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    made.cert_chain_pems[0].write_to_path(certificate)
    made.private_key_pem.write_to_path(key)
    return certificate, key


# -- check ------------------------------------------------------------------------------------------------------------------------------------


def test_settings_that_are_right_are_said_to_be_and_nothing_is_made(tmp_path):
    certificate_file, key = certificate(tmp_path)
    before = files_under(tmp_path)
    options = (*FREE, "--data-dir", tmp_path / "a" / "b", "--buffer-size", "10", "--cert-file", certificate_file, "--key-file", key)
    assert problems(*options, status=0) == []
    assert files_under(tmp_path) == before
    assert not (tmp_path / "a").exists()


def test_rows_that_end_with_the_server_are_worth_a_warning():
    (line,) = problems(*FREE, status=0)
    assert line.startswith("warning: data_dir from default: ")


def test_every_setting_that_breaks_its_rule_is_a_line_with_its_place(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('max_tables = 0\ndurability = "forever"\n')
    lines = problems("--config", file, "--address", "nowhere", TDREPLAY_GRACE_SECONDS="-1")
    assert len(lines) == 4
    for place in (f"{file}, line 1", f"{file}, line 2", "--address", "TDREPLAY_GRACE_SECONDS"):
        assert sum(f"from {place}: " in line for line in lines) == 1


def test_every_problem_that_only_the_start_would_find_is_a_line(tmp_path):
    certificate_file, _ = certificate(tmp_path)
    (tmp_path / "file").write_text("")
    tls = ("--cert-file", certificate_file, "--key-file", tmp_path / "none.pem")
    paths = ("--data-dir", tmp_path / "file" / "data", "--tokens-file", tmp_path / "none.json")
    lines = problems(*FREE, *tls, *paths, "--storing-device", "cuda:77")
    assert len(lines) == 4
    for place in ("cert_file", "tokens_file", "data_dir", "storing_device"):
        assert sum(line.startswith(f"{place} from --{place.replace('_', '-')}: ") for line in lines) == 1


def test_every_key_of_a_file_that_is_no_setting_is_named(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text("max_tabels = 1\nmax_tables = 2\nmax_streem = 3\n")
    (line,) = problems("--config", file)
    assert f"{file}, line 1: max_tabels is not a setting: max_tables is; {file}, line 3: max_streem is not a setting: max_streams is" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_this_user_may_not_write_to_is_a_problem(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    (line,) = problems(*FREE, "--data-dir", tmp_path / "closed" / "data")
    assert f"may not write to {tmp_path / 'closed'}" in line


@pytest.mark.parametrize(("days", "status", "words"), [(-1, 2, "has expired on"), (3, 0, "expires on"), (400, 0, None)])
def test_the_date_of_a_certificate_is_looked_at(tmp_path, days, status, words):
    expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    certificate_file, key = certificate(tmp_path, expires)
    lines = problems(*FREE, "--data-dir", tmp_path / "data", "--cert-file", certificate_file, "--key-file", key, status=status)
    assert [words in line and f"{expires:%Y-%m-%d %H:%M}" in line for line in lines] == ([True] if words else [])


def test_what_a_running_server_has_is_no_fault_of_the_settings(tmp_path):
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "data")) as server:
        lines = problems("--address", server.address, "--data-dir", tmp_path / "data", status=0)
    assert [line.split(" from ")[0] for line in lines] == ["warning: address", "warning: data_dir"]
    assert f"process {os.getpid()}" in lines[1]


def test_an_address_that_no_host_has_is_a_problem(tmp_path):
    (line,) = problems("--address", "192.0.2.1:50051", "--insecure", "--data-dir", tmp_path / "data")
    assert line.startswith("address from --address: address 192.0.2.1:50051 cannot be listened on")


def test_tables_that_are_there_with_other_settings_are_problems_with_the_line_of_the_setting(tmp_path):
    data = tmp_path / "data"
    made = {"one": {"buffer_size": 10}, "two": {"buffer_size": 10, "sampler": "fifo"}, "same": {"buffer_size": 5}}
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=data, tables=made, buffer_size=7)):
        pass
    before = files_under(data)
    file = tmp_path / "server.toml"
    file.write_text("""buffer_size = 8
[tables.one]
buffer_size = 20
[tables.two]
buffer_size = 10
sampler = "lifo"
[tables.same]
buffer_size = 5
""")
    lines = problems(*FREE, "--config", file, "--data-dir", data)
    assert len(lines) == 3
    for place, number in (("buffer_size", 1), ("tables.one.buffer_size", 3), ("tables.two.sampler", 6)):
        assert sum(line.startswith(f"{place} from {file}, line {number}: ") for line in lines) == 1
    assert files_under(data) == before


def test_a_table_that_is_broken_is_a_problem(tmp_path):
    data = tmp_path / "data"
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=data, buffer_size=7)):
        pass
    (data / "tables" / "default" / "journal.sqlite").write_bytes(b"no journal")
    (line,) = problems(*FREE, "--data-dir", data)
    assert line.startswith("data_dir from --data-dir: ")


# -- show -------------------------------------------------------------------------------------------------------------------------------------


def test_each_setting_is_shown_with_its_value_and_where_it_comes_from(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('max_tables = 9\n\n[tables.replay]\nbuffer_size = 100\nsampler = {name = "prioritized", alpha = 0.5}\n')
    done = config(
        "show", "--config", file, "--address", "127.0.0.1:7", "--key-file", "~/key.pem", "--cert-file", "/cert.pem", TDREPLAY_MAX_STREAMS="5"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert len(lines) == len(ServerConfig.model_fields)
    assert "address 127.0.0.1:7 --address" in lines
    assert f"max_tables 9 {file}, line 1" in lines
    assert "max_streams 5 TDREPLAY_MAX_STREAMS" in lines
    assert "insecure false default" in lines
    assert f"key_file {Path.home() / 'key.pem'} --key-file" in lines
    assert "data_dir not set default" in lines
    assert f'tables.replay {{buffer_size = 100, sampler = {{name = "prioritized", alpha = 0.5}}}} {file}, line 3' in lines


def test_the_toml_of_settings_gives_the_same_server(tmp_path):
    tables = '{"a": {"buffer_size": 10, "rate_limiter": {"name": "queue", "max_size": 5}}, "b": {"buffer_size": 7, "trajectories": true}}'
    options = ("--data-dir", 'data\x7f"x', "--tables", tables, "--grace-seconds", "2.5", "--durability", "interval:5", *FREE)
    done = completed("tdreplay-server", "config", "show", "--toml", *options, directory=tmp_path)
    (tmp_path / "made.toml").write_text(done.stdout)
    made = ServerConfig(config=tmp_path / "made.toml")
    given = ServerConfig(data_dir=tmp_path / 'data\x7f"x', tables=tables, grace_seconds=2.5, durability="interval:5", address="127.0.0.1:0")
    assert made.model_dump(exclude={"config"}) == given.model_dump(exclude={"config"})


# -- dates of certificates --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2049, 2050, 9999])
def test_the_dates_of_each_certificate_of_a_file_are_read(year):
    expires = datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.timezone.utc)
    one = trustme.CA().issue_cert("localhost", not_after=expires)
    (first, last), (_, other) = validity("a text\n" + one.cert_chain_pems[0].bytes().decode() + trustme.CA().cert_pem.bytes().decode())
    assert last == expires
    assert first < datetime.datetime.now(datetime.timezone.utc) < other


def test_what_is_no_certificate_is_said_to_be_none():
    whole = trustme.CA().cert_pem.bytes().decode().splitlines()
    assert validity("nothing") == []
    with pytest.raises(InvalidArgumentError, match="is no certificate"):
        validity("\n".join([whole[0], "AAAA", whole[-1]]))
    with pytest.raises(InvalidArgumentError, match="is no certificate"):
        validity("\n".join([*whole[:3], whole[-1]]))
