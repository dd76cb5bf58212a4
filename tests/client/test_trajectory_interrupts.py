"""Ctrl-C at any moment of a call of a writer of trajectories: no step is stored twice, none is missing among those that follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from episode_rows import LENGTH, check_numbers, stored, taken_step, taken_steps

from interrupts import interrupted_at, interrupting
from tdreplay_client import RemoteReplayBuffer, TrajectoryWriter

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
N = 1500
KINDS = ("grpc", "shared_memory")


@pytest.fixture(params=KINDS)
def buffer(request, address, table) -> Iterator[RemoteReplayBuffer]:
    made = opened(request.param, address, table)
    with made, made.trajectory_writer() as writer:  # What is imported when it is needed first is imported now.
        writer.append(*taken_step(0))
        writer.append(*taken_step(LENGTH - 1))
        writer.flush()
        made.reset()
        yield made


def opened(kind: str, address: str, table: str) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(address, table=table, buffer_size=20_000, trajectories=True, timeout=20, transport=kind)


def until_it_returns(call) -> None:
    while True:
        try:
            return call()
        except KeyboardInterrupt:
            continue


def whole(episodes: dict[int, list[int]], number: int, start: int = 0) -> None:
    """Passes where the episodes have each of so many steps once, and in their order."""
    assert [seen for found in episodes.values() for seen in found] == list(range(start, start + number))
    assert all(len(found) == LENGTH for found in list(episodes.values())[:-1])


def test_steps_whose_append_is_repeated_after_an_interrupt_are_stored_once(buffer):
    writer = buffer.trajectory_writer(autoreset="disabled")
    with interrupting(TrajectoryWriter.append.__code__, 0.005) as hits:
        for number in range(N):
            until_it_returns(lambda number=number: writer.append(*taken_step(number)))
    writer.close()
    assert hits[0] >= 3
    whole(check_numbers(stored(buffer)), N)


def test_a_step_whose_append_was_interrupted_is_stored_at_most_once_and_those_after_it_leave_no_gap(buffer):
    writer, interrupted = buffer.trajectory_writer(autoreset="disabled"), set()
    with interrupting(TrajectoryWriter.append.__code__, 0.005):
        for number in range(N):
            try:
                writer.append(*taken_step(number))
            except KeyboardInterrupt:
                interrupted.add(number)
    writer.close()
    found = [seen for steps in check_numbers(stored(buffer)).values() for seen in steps]
    assert interrupted
    assert found == sorted(set(found))
    assert set(range(N)) - set(found) <= interrupted


@pytest.mark.parametrize("again", [True, False], ids=["given again", "left out"])
@pytest.mark.parametrize("package", ["tdreplay.", "tdreplay_client."])
@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_an_append_may_be_interrupted_at_any_line(buffer, again, package, ends):
    writer, given, line, interrupted = buffer.trajectory_writer(autoreset="disabled"), [], 1, True
    numbers = (number for number in range(10**6) if (number % LENGTH == LENGTH - 1) is ends)
    while interrupted and line < 3000:
        given.append(next(numbers))
        interrupted = interrupted_at(line, package, lambda: writer.append(*taken_step(given[-1])))
        if interrupted and again:
            writer.append(*taken_step(given[-1]))
        writer.flush()  # Else an append waits for those before it, and the lines of its wait are without number.
        line += 1 + line // 25
    writer.close()
    assert 10 < line < 3000
    found = [seen for steps in check_numbers(stored(buffer)).values() for seen in steps]
    assert found == sorted(set(found))
    assert set(found) <= set(given)
    assert not again or found == given


@pytest.mark.parametrize(("n_envs", "width"), [(8, 1), (8, 16_384)], ids=["small", "a block each"])
def test_steps_of_several_environments_whose_append_is_repeated_are_stored_once(buffer, n_envs, width):
    number, most = (300, 1000) if width == 1 else (40, 8)
    writer = buffer.trajectory_writer(n_envs, autoreset="disabled")
    with interrupting(TrajectoryWriter.append.__code__, 0.005, most) as hits:
        for at in range(number):
            until_it_returns(lambda at=at: writer.append(*taken_steps(at, n_envs, width)))
    writer.close()
    assert hits[0] >= 1
    seen = [seen for steps in check_numbers(stored(buffer)).values() for seen in steps]
    assert sorted(seen) == [100_000 * env + at for env in range(n_envs) for at in range(number)]


@pytest.mark.parametrize("again", [True, False], ids=["given again", "left out"])
@pytest.mark.parametrize(("package", "width"), [("tdreplay_client.", 1), ("tdreplay.", 1), ("tdreplay_client.", 16_384), ("tdreplay.", 16_384)])
def test_an_append_of_several_environments_may_be_interrupted_at_any_line(buffer, again, package, width):
    writer, number, line, interrupted = buffer.trajectory_writer(4, autoreset="disabled"), 0, 1, True
    while interrupted and line < 3000:
        interrupted = interrupted_at(line, package, lambda number=number: writer.append(*taken_steps(number, 4, width)))
        if interrupted and again:
            writer.append(*taken_steps(number, 4, width))
        number, line = number + 1, line + 1 + line // 15
        writer.flush()
    writer.close()
    assert 10 < line < 3000
    seen = [seen for steps in check_numbers(stored(buffer)).values() for seen in steps]
    assert len(seen) == len(set(seen))
    if again:
        assert sorted(seen) == [100_000 * env + at for env in range(4) for at in range(number)]
