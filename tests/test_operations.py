"""The runbook: every command of docs/operations.md runs as pasted, from top to bottom, as somebody would who follows it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import children
from test_docs import ROOT, blocks, commands_of

RUNBOOK = ROOT / "docs" / "operations.md"
OFFLINE = {"verify", "restore", "resize"}
"""What needs the data directory for itself."""
ANYTIME = {"config", "token", "--help", "--version"}


class Host:
    """A directory in which the commands run, beside a server that is started when it is needed."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._environment = {"TDREPLAY_ADDRESS": f"127.0.0.1:{children.free_port()}"}
        self._serve: list[str] = []
        self._server: children.Command | None = None
        self._servers = 0

    def run(self, words: list[str]) -> None:
        name, subcommand = words[:2]
        if subcommand == "serve":
            self._stop()
            self._serve = words
        if name == "tdreplay-server" and subcommand in OFFLINE:
            self._stop()
        elif subcommand == "serve" or (name == "tdreplay" and subcommand not in ANYTIME):
            self._start()
        if subcommand != "serve":
            ran = children.completed(*words, directory=self._directory, **self._environment)
            assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"

    def _start(self) -> None:
        if self._server is None:
            self._servers += 1
            scratch = self._directory / f"server-{self._servers}"
            self._server = self._stack.enter_context(children.command(scratch, *self._serve, directory=self._directory, **self._environment))
            self._server.ready()

    def _stop(self) -> None:
        if self._server is not None:
            os.kill(self._server.pid, signal.SIGTERM)
            assert self._server.ended() == 0
            self._server = None


@contextmanager
def host(directory: Path) -> Iterator[Host]:
    """A host on which a server with the runbook's settings can be started, whatever the runbook does first."""
    (settings,) = blocks(RUNBOOK, "toml")
    (directory / "server.toml").write_text(settings.text)
    with ExitStack() as stack:
        made = Host(directory, stack)
        made.run(["tdreplay-server", "serve", "--config", "server.toml"])
        yield made


def test_each_command_of_the_runbook_does_what_it_should(tmp_path):
    with host(tmp_path) as there:
        ran = commands_of(RUNBOOK)
        assert len(ran) > 15
        for words in ran:
            there.run(words)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", RUNBOOK.read_text()))))
def test_a_link_of_the_runbook_leads_somewhere(link):
    file, _, section = link.partition("#")
    text = (RUNBOOK.parent / file if file else RUNBOOK).read_text()
    titles = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}
    assert not section or section in titles


def test_the_runbook_has_the_words_of_the_page_that_it_explains():
    from tdreplay_client.commands import status_page

    page = Path(status_page.__file__).read_text()
    for title in ("WAITING", "LIMITS NEAR THEIR END", "CLIENT", "RATIO", "INSERTS/s", "SAMPLES/s"):
        assert title in page
        assert title in RUNBOOK.read_text()
