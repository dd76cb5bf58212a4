"""Bars on a terminal."""

from __future__ import annotations

import gc
import io
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr

import pytest

from conftest import rows
from tdreplay.progress import ProgressBar
from tdreplay_server import ReplayBuffer


class Terminal(io.StringIO):
    """What a terminal was given."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def on_a_terminal(program: Sequence[str]) -> tuple[int, str, str]:
    """The status of a program whose standard error is a terminal, its standard output, and what the terminal was given."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"})
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # So Linux says that nobody has the terminal open any more.
        pass
    finally:
        os.close(ours)
    out, _ = child.communicate(timeout=60)
    return child.returncode, out.decode(), shown.decode()


def test_an_epoch_draws_a_bar_up_to_its_end_and_gives_the_cursor_back(terminal):
    with redirect_stderr(terminal), ReplayBuffer("cpu", "cpu", 100) as buffer:
        buffer.add_batch(rows(100))
        assert sum(len(batch) for batch in buffer.epochs(32, progress=True)) == 100
    shown = terminal.getvalue()
    assert "epochs" in shown
    assert "100/100" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_an_iterator_that_nobody_has_any_more_gives_the_cursor_back(terminal):
    with redirect_stderr(terminal), ReplayBuffer("cpu", "cpu", 100) as buffer:
        buffer.add_batch(rows(100))
        batches = buffer.epochs(32, progress=True)
        next(batches)
        assert terminal.getvalue().count("\x1b[?25h") == 0
        del batches
        gc.collect()
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_a_bar_of_bytes_has_their_unit(terminal):
    with redirect_stderr(terminal), closing(ProgressBar("checkpoint", "bytes")) as bar:
        bar(0, 3_000_000)
        bar(3_000_000, 3_000_000)
    assert "3.0/3.0 MB" in terminal.getvalue()


def test_a_command_draws_its_bar_on_standard_error_alone(tmp_path):
    with ReplayBuffer("cpu", "cpu", 100, directory=tmp_path / "table") as buffer:
        buffer.add_batch(rows(100))
        path = buffer.checkpoint("one").path
    status, out, shown = on_a_terminal([sys.executable, "-m", "tdreplay_server", "verify", path])
    assert (status, out.count("\n")) == (0, 1)
    assert "every byte checked" in out
    assert "verify" in shown
    assert "100%" in shown
