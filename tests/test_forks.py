"""A forked process has its parent's buffers and servers in memory: it may not use them, cannot end them, and ends by itself.

Each test has a process of its own that forks, and it is not the one that runs the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from children import server_process
from tdreplay_server import ServerConfig

HARNESS = """
import gc, json, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
import torch
from tensordict import TensorDict
from tdreplay.errors import ForkedError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig

SECONDS = 90  # Without a fault it takes one or two, to take down what was imported; on a machine that is busy, many times that.

def batch(n, value):
    return TensorDict({"x": torch.full((n, 1), float(value))}, [n])

def forked(act):
    pid = os.fork()
    if not pid:
        signal.alarm(SECONDS)
        act()
        sys.exit(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(calls):
    for name, call in calls.items():
        try:
            found = call()
        except ForkedError as error:
            assert f"process {os.getppid()}" in str(error), error
        else:
            raise AssertionError(f"{name} gave {found!r}")

def methods(buffer, iterator):
    return {
        "add": lambda: buffer.add(batch(1, 7)[0]),
        "add_batch": lambda: buffer.add_batch(batch(5, 7)),
        "sample_batch": lambda: buffer.sample_batch(2),
        "sample_random": lambda: buffer.sample_random(2),
        "sample_by_index": lambda: buffer.sample_by_index([0]),
        "sample_by_index_fields": lambda: buffer.sample_by_index_fields([0], ["x"]),
        "sample_all": lambda: buffer.sample_all(),
        "update_priorities": lambda: buffer.update_priorities([0], [2.0]),
        "describe": lambda: buffer.describe(),
        "iterator": lambda: next(iterator),
        "get_next_batch": lambda: buffer.get_next_batch(2),
        "create_epoch_iterator": lambda: next(buffer.create_epoch_iterator(2)),
        "get_steps_and_iterator": lambda: buffer.get_steps_and_iterator(1, 1, 2),
        "calculate_num_batches": lambda: buffer.calculate_num_batches(2),
        "state": lambda: buffer.state(),
        "len": lambda: len(buffer),
        "pointer": lambda: buffer.pointer,
        "save": lambda: buffer.save(folder / "forked"),
        "load": lambda: buffer.load(folder / "saved"),
        "reset": lambda: buffer.reset(),
        "checkpoint": lambda: buffer.checkpoint("forked"),
    }
"""


LOOP = """
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        break
    print(ended(pid), flush=True)
else:
    os._exit(0)
signal.alarm(SECONDS + 20)
program, folder, address = json.loads(line)
folder = Path(folder)
for number, name in ((1, "stdout"), (2, "stderr")):
    os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
exec(program)
"""

Run = Callable[..., None]


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """A process that imports once, and forks one for each test. Those end as an interpreter does; the children of `children` do not."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HARNESS + LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.fixture
def run(forking, tmp_path) -> Run:
    """Runs a program in a fork, with the test's folder and an address, to its end."""

    def run_program(program: str, address: str = "") -> None:
        forking.stdin.write(json.dumps([program, str(tmp_path), address]) + "\n")
        forking.stdin.flush()
        status = int(forking.stdout.readline())
        assert (status, (tmp_path / "stdout").read_text()) == (0, "passed\n"), (tmp_path / "stderr").read_text()[-3000:]

    return run_program


IN_PROCESS = """
def contents(folder):
    files = {path for path in folder.rglob("*") if path.is_file()}
    return files, [path.read_bytes() for path in sorted(files) if "rows-" in str(path)]  # The flusher writes the journal.

def tried(directory, **settings):
    buffer = ReplayBuffer("cpu", "cpu", 10, directory=directory, **settings)
    buffer.add_batch(batch(10, 0))
    buffer.save(folder / "saved")
    iterator = buffer.create_epoch_iterator(2)
    next(iterator)
    before, files = buffer.sample_all(), {} if directory is None else contents(directory)
    ended_early = threading.Event()

    def read():
        while not ended_early.is_set():
            buffer.sample_batch(10)
            time.sleep(0.0001)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def use():
        refused(methods(buffer, iterator))
        if directory is not None:  # The other one is left as it is.
            buffer.close()

    assert ended(forked(use)) == 0
    ended_early.set()
    reader.join()
    assert (buffer.sample_all() == before).all()
    next(iterator)
    if directory is not None:
        assert contents(directory) == files
        buffer.close()
        with ReplayBuffer("cpu", "cpu", 10, directory=directory, **settings) as again:
            assert (again.sample_all() == before).all()

tried(None)
tried(folder / "kept", durability="interval:0.01")
tried(folder / "priorities", sampler="max_heap")
print("passed")
"""


def test_a_fork_neither_uses_nor_changes_a_buffer_in_process(run):
    run(IN_PROCESS)


HELD = """
buffer = ReplayBuffer("cpu", "cpu", 10, directory=folder / "kept")
buffer.add_batch(batch(10, 0))
written, go_on = threading.Event(), threading.Event()

def progress(done, total):
    written.set()
    go_on.wait()

checkpoint = threading.Thread(target=lambda: buffer.checkpoint("one", progress=progress), daemon=True)
checkpoint.start()
written.wait()
pid = forked(lambda: refused({"checkpoint": lambda: buffer.checkpoint("two"), "reset": buffer.reset}))
assert ended(pid) == 0
go_on.set()
checkpoint.join()
assert [path.name for path in (folder / "kept" / "checkpoints").iterdir()] == ["one"]
print("passed")
"""


def test_what_runs_in_another_thread_at_the_fork_goes_on_in_the_parent_alone(run):
    run(HELD)


LONG_LIVED = """
buffer = ReplayBuffer("cpu", "cpu", 10, directory=folder / "kept")
server = ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=folder / "data")).start()
pid = forked(lambda: time.sleep(SECONDS))
buffer.close()
server.stop()
ReplayBuffer("cpu", "cpu", 10, directory=folder / "kept").close()
with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=folder / "data")):
    os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("passed")
"""


def test_a_fork_that_lives_on_keeps_no_directory(run):
    run(LONG_LIVED)


SERVER = """
server = ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10))
server.start()
buffer = RemoteReplayBuffer(server.address, timeout=10)
buffer.add_batch(batch(10, 0))
stream = buffer.stream(2)
next(stream)
assert ended(forked(lambda: (refused({"start": server.start, "wait": server.wait}), server.stop(), server.__exit__(None, None, None)))) == 0
for _ in range(20):
    next(stream)
assert len(buffer.sample_all()) == 10
stream.close()
buffer.close()
server.stop()
print("passed")
"""


def test_a_fork_cannot_stop_its_parents_server(run):
    run(SERVER)


REMOTE = """
def undisturbed(act):
    pid = os.fork()
    if not pid:
        signal.alarm(SECONDS)
        act()
        sys.exit(0)
    for _ in range(20):
        buffer.sample_batch(2)
        next(stream)
        writer.append(batch(1, 0)[0])
    assert ended(pid) == 0
    writer.flush()
    buffer.add_batch(batch(1, 0))
    next(iterator)

def use():
    refused(methods(buffer, iterator))
    refused({
        "append": lambda: writer.append(batch(1, 7)[0]), "extend": lambda: writer.extend(batch(5, 7)), "flush": writer.flush,
        "stream": lambda: next(stream), "a stream": lambda: buffer.stream(2), "a writer": buffer.writer, "drop": buffer.drop,
        "an update": lambda: stream.update_priorities(found, 2.0),
    })
    for thing in (writer, stream, buffer):
        thing.__exit__(None, None, None)

def drop():
    global writer, stream, iterator, buffer
    writer = stream = iterator = buffer = None
    gc.collect()

buffer = RemoteReplayBuffer(address, timeout=10)
buffer.add_batch(batch(64, 0))
buffer.save(folder / "saved")
for _ in range(3):
    buffer.sample_batch(2)  # So that a call is held open.
found = buffer.sample_batch(2)
writer, stream, iterator = buffer.writer(), buffer.stream(2), buffer.create_epoch_iterator(2)
writer.append(batch(1, 0)[0])
for act in (use, drop):
    undisturbed(act)
process = multiprocessing.get_context("fork").Process(target=lambda: None)
process.start()
process.join(SECONDS)
assert process.exitcode == 0
writer.close()
stream.close()
assert not buffer.sample_all()["x"].any()
assert len(buffer) == 64 + 1 + 2 * 21
buffer.close()
print("passed")
"""


def test_a_fork_neither_uses_nor_disturbs_a_remote_buffer_and_ends(run):
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
        run(REMOTE, server.address)
