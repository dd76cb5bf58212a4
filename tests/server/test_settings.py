"""Settings that cannot be used: from the command line, the environment and a file. Each is one line that says the value and the rule."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from children import completed
from tdreplay.errors import InvalidArgumentError, ServerUnavailableError
from tdreplay_server import ReplayServer, ServerConfig, spawn_server

LOCAL = "127.0.0.1:0"


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``tdreplay-server serve`` until its standard input ends, which it does at once."""
    return completed("tdreplay-server", "serve", "--until-stdin-closes", *arguments, **environment)


def refusal(*arguments: str, **environment: str) -> str:
    """The one line with which it ends."""
    done = serve(*arguments, **environment)
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert (done.stderr.startswith("tdreplay-server: "), done.stderr.count("\n")) == (True, 1), done.stderr
    return done.stderr


# -- empty, and ~ -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ServerConfig.model_fields)
def test_a_setting_that_is_empty_is_not_set(name, monkeypatch, tmp_path):
    monkeypatch.setenv(f"TDREPLAY_{name.upper()}", "")
    file = tmp_path / "server.toml"
    file.write_text(f'{name} = ""\n')
    default = ServerConfig.model_fields[name].default
    assert getattr(ServerConfig(), name) == getattr(ServerConfig(**{name: ""}), name) == default
    assert name == "config" or getattr(ServerConfig(config=file), name) == default


def test_an_empty_option_leaves_the_environment_s_value(tmp_path):
    done = serve("--data-dir", "", "--address=", TDREPLAY_ADDRESS=LOCAL, TDREPLAY_DATA_DIR=str(tmp_path / "kept"))
    assert done.returncode == 0
    assert (tmp_path / "kept" / "LOCK").exists()


@pytest.mark.parametrize("name", ["config", "data_dir", "shared_memory_dir"])
def test_a_path_may_begin_with_the_home(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    there = tmp_path / "there"
    there.write_text("") if name == "config" else there.mkdir()
    assert getattr(ServerConfig(**{name: "~/there"}), name) == there
    with pytest.raises(ValidationError, match="no user"):
        ServerConfig(**{name: "~nobody-of-that-name/there"})


def test_a_socket_s_path_may_begin_with_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ServerConfig(address="unix:~/s.sock").address == f"unix:{tmp_path}/s.sock"


@pytest.mark.parametrize(
    ("path", "words"), [("", "cannot be empty"), ("~nobody-of-that-name/x", "no user has"), ("~/nothing", "/nothing is neither")]
)
def test_a_path_of_a_command_follows_the_same_rules(path, words, tmp_path):
    done = completed("tdreplay-server", "verify", path, directory=tmp_path, HOME=str(tmp_path))
    assert (done.returncode in (1, 2), "Traceback" in done.stderr) == (True, False)
    assert words in done.stderr


# -- names ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TDREPLAY_DATADIR", "TDREPLAY_DATA_DIR"), ("TDREPLAY_ADRESS", "TDREPLAY_ADDRESS"), ("TDREPLAY_BUFER_SIZE", "TDREPLAY_BUFFER_SIZE")],
)
def test_a_misspelt_variable_is_named_with_the_right_one(name, meant, monkeypatch):
    monkeypatch.setenv(name, "5")
    with pytest.raises(ValidationError, match=f"{name} .* {meant} is"):
        ServerConfig()


def test_a_variable_that_is_like_no_setting_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("TDREPLAY_SERVICE_HOST", "10.0.0.1")
    ServerConfig()
    assert "TDREPLAY_SERVICE_HOST" in caplog.text


@pytest.mark.parametrize("name", ["TDREPLAY_FAILPOINT", "TDREPLAY_KILLS", "TDREPLAY_BENCH_ENVS", "TDREPLAY_DOCKER"])
def test_the_project_s_own_variables_are_known(name, monkeypatch, caplog):
    monkeypatch.setenv(name, "1")
    ServerConfig()
    assert caplog.text == ""


# -- files ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"address = 'x'\nbuffer_size = \n", 2, "Invalid value"),
        (b"buffer_size = 1\nbuffer_size = 2\n", 2, "overwrite"),
        (b"# \xff\n", 1, "UTF-8"),
        (b"\n\nbuffer_size = 'many'\n", 3, "valid integer"),
        (b"buffer_size = true\n", 1, "number"),
        (b"\ndata_dir = 7\n", 2, "path"),
        (b'data_dir = "a\\u0000b"\n', 1, "null"),
        (b"address = '127.0.0.1:0'\nmax_tabels = 4\n", 2, "max_tables is"),
        (b"[server]\naddress = 'x'\n", 1, "server is not a setting"),
        (b"grace_seconds = nan\n", 1, "greater than or equal to 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_line_with_its_name_the_line_and_the_reason(content, line, reason, tmp_path):
    file = tmp_path / "server.toml"
    file.write_bytes(content)
    said = refusal("--config", str(file))
    assert f"{file}, line {line}: " in said
    assert reason in said


@pytest.mark.parametrize("content", ["x = " + "[" * 5000, "buffer_size = " + "9" * 6000], ids=["deep", "long"])
def test_a_file_that_the_parser_gives_up_on_is_one_error(content, tmp_path):
    (tmp_path / "server.toml").write_text(content)
    with pytest.raises(ValidationError, match=str(tmp_path)):
        ServerConfig(config=tmp_path / "server.toml")


# -- values -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *[{"buffer_size": value} for value in (-1, 0, True, 1 << 63, 10**40, "1e3", float("inf"), float("nan"))],
        *[{"grace_seconds": value} for value in (-1, "nan", "inf", float("nan"), True)],
        *[{"max_tables": value} for value in (0, -1, False)],
        *[
            {"address": value}
            for value in ("here", "::1:5", "h:65536", "h:-1", "h:", ":5", "unix:", "unix:a b", "unix:" + "x" * 200, "h:\u0661", "a\0:5")
        ],
        *[{"storing_device": value} for value in ("mps", "meta", "tape", "cuda:-1", "cuda:99999999999")],
        *[{"durability": value, "data_dir": "x"} for value in ("none", "interval:nan", "interval:-1", "interval:inf", "interval")],
        {"data_dir": "/etc/passwd"},
        {"shared_memory_dir": "/etc/passwd"},
        {"shared_memory_dir": "/nowhere"},
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        ServerConfig(**settings)


@pytest.mark.parametrize("origin", ["option", "variable"])
def test_a_refusal_says_where_the_value_came_from(origin):
    said = refusal("--max-tables", "0") if origin == "option" else refusal(TDREPLAY_MAX_TABLES="0")
    assert {"option": "from --max-tables", "variable": "from TDREPLAY_MAX_TABLES"}[origin] in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_storing_device_that_is_not_there_is_refused_at_the_start():
    with pytest.raises(InvalidArgumentError, match="cuda:0"):
        ReplayServer(ServerConfig(address=LOCAL, storing_device="cuda:0")).start()


def test_a_spawned_server_has_the_settings_of_its_parent_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("TDREPLAY_DATA_DIR", str(tmp_path / "unwanted"))
    with spawn_server(ServerConfig(address=LOCAL, data_dir=None)):
        assert not (tmp_path / "unwanted").exists()


# -- addresses --------------------------------------------------------------------------------------------------------------------------------


def why_not(address: str) -> str:
    with pytest.raises(ServerUnavailableError) as raised:
        ReplayServer(ServerConfig(address=address, insecure=True)).start()
    return str(raised.value)


def test_a_busy_port_says_that_it_is_in_use_and_by_whom():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = why_not(f"127.0.0.1:{taken.getsockname()[1]}")
    assert re.search(rf"address already in use by process {os.getpid()} \('.*'\)$", said)


def test_a_busy_socket_says_that_it_is_in_use_and_by_whom(tmp_path):
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "s.sock"))
        taken.listen()
        assert f"address already in use by process {os.getpid()}" in why_not(f"unix:{tmp_path}/s.sock")


def test_a_file_in_the_place_of_a_socket_stays(tmp_path):
    (tmp_path / "rows.txt").write_text("mine")
    assert "already in use" in why_not(f"unix:{tmp_path}/rows.txt")
    assert (tmp_path / "rows.txt").read_text() == "mine"


def test_a_socket_whose_server_is_gone_may_be_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "s.sock"))
    with ReplayServer(ServerConfig(address=f"unix:{tmp_path}/s.sock")) as server:
        assert server.address == f"unix:{tmp_path}/s.sock"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("unix:/nowhere/at/all.sock", "no such file or directory"),
        ("192.0.2.1:0", "cannot assign requested address"),
        ("256.0.0.1:1", "256.0.0.1:1 cannot be listened on"),
    ],
)
def test_an_address_that_cannot_be_listened_on_says_why(address, words):
    assert words in why_not(address)


def test_a_server_that_cannot_listen_leaves_no_data_directory(tmp_path):
    with pytest.raises(ServerUnavailableError):
        ReplayServer(ServerConfig(address="192.0.2.1:0", insecure=True, data_dir=tmp_path / "data")).start()
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6")
def test_a_server_listens_on_ipv6():
    with ReplayServer(ServerConfig(address="[::1]:0")) as server:
        assert re.fullmatch(r"\[::1\]:\d+", server.address)


# -- without the extra, and help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["pydantic", "structlog", "xxhash"])
def test_without_the_extra_the_command_says_how_to_install_it(missing):
    program = f"import sys; sys.modules[{missing!r}] = None; from tdreplay_server.__main__ import main; main()"
    command = [sys.executable, "-c", program, "serve", "--address", LOCAL, "--until-stdin-closes"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert missing in done.stderr
    assert "pip install 'tdreplay[server]'" in done.stderr


def test_without_the_extra_the_classes_say_how_to_install_it():
    program = "import sys; sys.modules['xxhash'] = None; from tdreplay_server import ReplayBuffer"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "tdreplay_server.ReplayBuffer needs xxhash, which is not installed: pip install 'tdreplay[server]'" in done.stderr


def test_help_shows_every_default_and_every_variable():
    command = [sys.executable, "-m", "tdreplay_server", "serve", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    )
    text = " ".join(done.stdout.split())
    for name, field in ServerConfig.model_fields.items():
        assert f"[env: TDREPLAY_{name.upper()}]" in text
        assert field.default is None or f"[env: TDREPLAY_{name.upper()}] [default: {field.default}]" in text
