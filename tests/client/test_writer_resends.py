"""Writers whose server dies and comes back: they go on by themselves, and each row is stored exactly once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from restarts import SIZE, give_again, restart_soon, small, stored, wide

from conftest import freeze, thaw
from tdreplay.errors import DeadlineError, ServerUnavailableError
from tdreplay_client.writing.insert_ids import MAX_UNACKNOWLEDGED

pytest_plugins = ["restart_fixtures"]


def row(number: int) -> dict[str, object]:
    obs = np.full(3, number, np.float32)
    return {"obs": obs, "action": number, "done": number % 2 == 0, "next": {"obs": obs + 1}}


def test_a_writer_of_rows_goes_on_by_itself(phoenix, buffer):
    starting = threading.Thread(target=restart_soon, args=(phoenix,))
    with buffer.writer(flush_rows=8) as writer:
        starting.start()
        number = 0
        while starting.is_alive() or number < 3000:
            writer.append(row(number))
            number += 1
            time.sleep(0.0005)
    assert buffer.state().write_count == number
    assert stored(buffer) == list(range(number))[-SIZE:]


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_a_writer_of_large_blocks_goes_on_by_itself(phoenix, open_buffer, transport):
    buffer = open_buffer(timeout=60, transport=transport)
    starting = threading.Thread(target=restart_soon, args=(phoenix,))
    with buffer.writer(flush_rows=8) as writer:
        writer.extend(wide(0, 100))
        assert writer.shared == (transport == "auto")
        starting.start()
        number = 100
        while starting.is_alive():
            writer.extend(wide(number, 40))
            writer.append(wide(number + 40, 1)[0])
            number += 41
            time.sleep(0.02)
        assert writer.shared == (transport == "auto")
    assert buffer.state().write_count == number
    assert stored(buffer) == list(range(number))[-SIZE:]


def test_a_writer_that_has_nothing_to_send_does_not_mind_how_long_its_server_is_gone(phoenix, short):
    with short.writer() as writer:
        writer.append(row(0))
        writer.flush()
        phoenix.kill()
        time.sleep(1.5)
        phoenix.start()
        writer.append(row(1))
    assert stored(short) == [0, 1]


def test_a_writer_has_no_more_blocks_on_their_way_than_the_server_remembers(phoenix, buffer):
    writer = buffer.writer(flush_rows=1, max_in_flight=1000)
    writer.append(row(0))
    writer.flush()
    freeze(phoenix.server.pid)
    try:
        appended: list[int] = []
        thread = threading.Thread(target=lambda: [appended.append(writer.append(row(number))) for number in range(1, 101)])
        thread.start()
        time.sleep(0.5)
        assert len(appended) <= MAX_UNACKNOWLEDGED + 2
        assert thread.is_alive()
    finally:
        thaw(phoenix.server.pid)
    thread.join(90)
    writer.flush()
    assert stored(buffer) == list(range(101))


@pytest.mark.parametrize(("make", "again"), [(small, "extend"), (wide, "add_batch")])
def test_the_rows_of_a_writers_error_are_stored_once_when_they_are_given_again(phoenix, short, make, again):
    writer = short.writer(flush_rows=16)
    write(writer, make, 0)
    writer.flush()
    freeze(phoenix.server.pid)
    try:
        with pytest.raises(DeadlineError) as raised:
            write_until_it_fails(writer, make, 80)
    finally:
        thaw(phoenix.server.pid)
    give_again(short, again, raised.value.rows)
    found = stored(short)
    assert found == list(range(len(found)))
    assert len(found) == 80 + len(raised.value.rows)


def write(writer, make, first: int) -> None:
    """80 rows, one by one and as a batch."""
    for one in make(first, 8):
        writer.append(one)
    writer.extend(make(first + 8, 72))


def write_until_it_fails(writer, make, first: int) -> None:
    for number in range(first, 100_000, 80):
        write(writer, make, number)


@pytest.mark.parametrize("make", [small, wide], ids=["small", "large"])
def test_rows_that_come_back_from_writer_after_writer_are_stored_once(phoenix, short, make):
    """A user who never gives up: each failed writer's rows go into the next one, in front of the rest."""
    starting = threading.Thread(target=restart_soon, args=(phoenix,))
    starting.start()
    writer, back, number = short.writer(flush_rows=4), None, 0
    while starting.is_alive() or back is not None or number < 2000:
        try:
            if back is not None:
                given, back = back, None
                writer.extend(given)
            elif number % 100 == 0:
                number += 60
                writer.extend(make(number - 60, 60))
            else:
                number += 1
                writer.append(make(number - 1, 1)[0])
            if number % 500 == 0:
                writer.flush()
        except (DeadlineError, ServerUnavailableError) as error:
            back = error.rows
            writer = short.writer(flush_rows=4)
    writer.flush()
    assert short.state().write_count == number
    assert stored(short) == list(range(number))[-SIZE:]
