"""Whom the dashboard answers, what it says when the server does not answer, and the command."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator

import pytest
from dashboards import Page, dashboard, fill_episodes, until

from children import command, completed, free_port, server_process
from conftest import rows
from tdreplay.errors import InvalidArgumentError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.dashboard.serving import Dashboard
from tdreplay_client.transport.access import Access
from tdreplay_client.transport.connection import Connection
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def page(address) -> Iterator[Page]:
    with dashboard(address) as page:
        yield page


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("LOCALHOST:8265", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("192.168.3.4:8265", 200)]
)
def test_it_is_known_by_loopback_and_by_ip_addresses(page, host, status):
    assert page.fetch("", headers={"Host": host})[0] == status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8265", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "999.1.1.1"])
@pytest.mark.parametrize("path", ["", "api/overview", "static/main.js"])
def test_a_name_that_was_changed_to_this_address_is_refused(page, host, path):
    status, _, body = page.fetch(path, headers={"Host": host})
    assert (status, b"--allow-host" in body) == (421, True)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(page, method):
    for path in ("", "api/overview", "api/tables/default", "static/main.js"):
        status, headers, _ = page.fetch(path, method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_page_of_another_site_gets_nothing(page):
    other = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert page.fetch("api/overview", headers=other)[0] == 403
    assert page.fetch("", headers={**other, "Sec-Fetch-Mode": "navigate"})[0] == 200  # A link to it.
    _, headers, _ = page.fetch("api/overview", headers={"Origin": "https://evil.example"})
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["", "api/overview", "api/tables/nothing", "static/main.js", "nothing"])
def test_every_answer_says_what_a_browser_may_do(page, path):
    _, headers, _ = page.fetch(path)
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert (headers["x-content-type-options"], headers["cross-origin-resource-policy"]) == ("nosniff", "same-origin")
    assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["static/../app.py", "static/%2e%2e/app.py", "static/..%2fapp.py", "static//etc/passwd", "api/tables/..%2f..", "static/"]
)
def test_no_other_file_is_served(page, path):
    assert page.fetch(path)[0] in (400, 404)


def test_the_page_needs_nothing_from_elsewhere(page):
    for name in ("", *(f"static/{name}" for name in ("main.js", "charts.js", "style.css", "parts.css", "dom.js"))):
        status, _, body = page.fetch(name)
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert (status, "//" in text.replace("// ", "")) == (200, False), name


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.168.3.4:0", "example.org:0"])
def test_other_addresses_than_loopback_need_to_be_asked_for(address, listen):
    connection = Connection(address, 5)
    with pytest.raises(InvalidArgumentError, match="--insecure"):
        Dashboard(connection, listen)
    connection.close()


def test_a_reader_sees_its_tables_alone(tmp_path):
    made = completed("tdreplay-server", "token", "create", "--role", "reader", "--table", "pix*", "--tokens-file", tmp_path / "tokens.json")
    admin = completed("tdreplay-server", "token", "create", "--role", "admin", "--tokens-file", tmp_path / "tokens.json").stdout.strip()
    assert stat.S_IMODE(os.stat(tmp_path / "tokens.json").st_mode) == 0o600
    with ReplayServer(ServerConfig(address="127.0.0.1:0", tokens_file=tmp_path / "tokens.json")) as server:
        with RemoteReplayBuffer(server.address, table="hidden", buffer_size=5, token=admin) as hidden:
            hidden.add_batch(rows(3))
        fill_episodes(server.address, token=admin).close()
        with dashboard(server.address, Access(token=made.stdout.strip())) as page:
            shown = page.read("overview")
            assert ([table["table"] for table in shown["tables"]], shown["server"]["refused"]) == (["pixels"], "")
            newest = page.read("tables/pixels/episodes")["episodes"][0]["episode_id"]
            for path in ("", "/histograms", "/rows", f"/episodes/{newest}"):
                page.read(f"tables/pixels{path}")
            assert page.picture("pixels", row=0, field="obs").shape == (24, 24, 3)
            assert page.refusal("tables/hidden/rows")[0] == 403
            assert made.stdout.strip() not in str(page.fetch("api/overview"))
        with dashboard(server.address, Access(token=admin + "x")) as page:
            assert "valid token of the role reader" in page.read("overview")["error"]
            assert page.refusal("tables/pixels/rows")[0] == 403


def test_a_server_that_was_away_is_shown_again():
    place = f"127.0.0.1:{free_port()}"
    with dashboard(place, timeout=2) as page:
        assert "is away" in page.read("overview")["error"]
        with server_process(ServerConfig(address=place)) as server:
            with RemoteReplayBuffer(place, table="first", buffer_size=5, timeout=20) as buffer:
                buffer.add_batch(rows(3))
            until(lambda: [table["size"] for table in page.read("overview")["tables"]] == [3])
            server.child.kill()
            server.child.wait()
            error = until(lambda: page.read("overview")["error"])
            assert "The page goes on by itself" in error
            assert page.read("overview")["tables"][0]["size"] == 3  # What was seen last.
            assert page.refusal("tables/first/rows")[0] == 503
        with server_process(ServerConfig(address=place)):
            until(lambda: (found := page.read("overview"))["error"] == "" and found["tables"] == [])


def test_the_command_serves_until_it_is_told_to_stop(address, tmp_path):
    with command(tmp_path / "ran", "tdreplay", "dashboard", "--address", address, "--listen", "127.0.0.1:0") as ran:
        line = ran.line()
        said, _, url = line.partition(" on ")
        assert said == f"dashboard of {address}"
        assert Page(url).read("overview")["address"] == address
        os.kill(ran.pid, signal.SIGINT)
        ran.ended()
        assert ran.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "0.0.0.0:0"), "--insecure allows that"),
        (("--listen", "here"), "must be HOST:PORT"),
        (("--listen", "unix:/tmp/dashboard"), "browsers know no Unix sockets"),
        (("--address", "nowhere"), "address ('nowhere') must be"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, words):
    done = completed("tdreplay", "dashboard", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr


def test_a_port_that_is_taken_is_one_line(address):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = completed("tdreplay", "dashboard", "--address", address, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_what_is_not_installed_is_named():
    program = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['tdreplay', 'dashboard']; from tdreplay_client.cli import main; main()"
    done = completed("-c", program)
    assert (done.returncode, done.stderr) == (1, "tdreplay: the dashboard needs uvicorn: pip install 'tdreplay[dashboard]'\n")
