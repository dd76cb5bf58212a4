"""What samplers do beyond the rows that they choose: chance, late updates, bad priorities, restarts, threads, and what they take."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from played_rows import PlayedRows
from tdreplay import samplers
from tdreplay.errors import EmptyTableError, InvalidArgumentError
from tdreplay.samplers import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Uniform, WithoutReplacement
from tdreplay_server.tables.samplers import SAMPLERS

ALL = [Uniform(), Prioritized(0.6), Fifo(), Lifo(), WithoutReplacement(), MaxHeap(), MinHeap()]
PRIORITIZED = [Prioritized(0.6), MaxHeap(), MinHeap()]
DRAWS = 1_000_000

each = pytest.mark.parametrize("value", ALL, ids=str)
prioritized = pytest.mark.parametrize("value", PRIORITIZED, ids=str)


def stirred(value: samplers.Sampler, buffer_size: int = 1000, seed: int = 0) -> PlayedRows:
    """Rows after inserts, wraps, updates, rows that were withheld and offered, and restarts, all of them random."""
    chance, played = np.random.default_rng(seed), PlayedRows(value, buffer_size)
    for turn in range(40):
        count = int(chance.integers(1, buffer_size // 4))
        played.insert(count, chance.random(count) * 3 if chance.random() < 0.5 else None)
        ids = chance.integers(played.ring.oldest, played.ring.write_count, 50)
        played.update(ids, np.where(chance.random(50) < 0.2, 0.0, chance.exponential(size=50)))
        played.draw(10, turn)
        if turn % 3 == 0:
            played.reopen()
        played.withhold(chance.integers(played.ring.oldest, played.ring.write_count, 30))
        if turn % 2:
            played.offer(chance.integers(played.ring.oldest, played.ring.write_count, 300))
        if turn % 5 == 0:
            played.leave(int(chance.integers(0, 20)))
    return played


def fits(ids: np.ndarray, expected: dict[int, float]) -> bool:
    """Whether the rows were drawn with the expected probabilities (chi-square; five standard deviations)."""
    counts = np.bincount(ids - ids.min())
    found = {row_id: counts[row_id - ids.min()] for row_id in np.unique(ids).tolist()}
    assert found.keys() <= {row_id for row_id, share in expected.items() if share}
    shares = np.array([share for share in expected.values() if share])
    drawn = np.array([found.get(row_id, 0) for row_id, share in expected.items() if share])
    statistic = float(((drawn - len(ids) * shares) ** 2 / (len(ids) * shares)).sum())
    return abs(statistic - (len(shares) - 1)) < 5 * (2 * (len(shares) - 1)) ** 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("withheld", [True, False])
def test_prioritized_draws_have_the_exact_probabilities(seed, withheld):
    played, held = stirred(Prioritized(0.6), seed=seed), set()
    live = range(played.ring.oldest, played.ring.write_count)
    played.offer(live)
    priorities = np.random.default_rng(seed).exponential(size=len(live) // 2)
    priorities[::7] = 0
    played.update(live[::2][: len(priorities)], priorities)
    if withheld:
        held = set(live[::3])
        played.withhold(held)
    raw = played.state.columns["priority"]
    weights = {row_id: 0.0 if row_id in held else float(raw[row_id % 1000]) ** 0.6 for row_id in live}
    total = sum(weights.values())
    assert fits(played.draw(DRAWS // 4, 1, 2, 3, 4).ids, {row_id: weight / total for row_id, weight in weights.items()})


@pytest.mark.parametrize("withheld", [True, False])
def test_uniform_draws_have_the_exact_probabilities(withheld):
    played = stirred(Uniform()) if withheld else PlayedRows(Uniform(), 1000)
    held = set()
    played.insert(1700)
    if withheld:
        held = set(range(played.ring.oldest, played.ring.write_count, 3))
        played.withhold(held)
    drawable = set(range(played.ring.oldest, played.ring.write_count)) - held
    assert fits(played.draw(DRAWS // 4, 1, 2, 3, 4).ids, dict.fromkeys(drawable, 1 / len(drawable)))


def test_each_place_of_a_pass_has_each_row_with_the_same_probability():
    played = PlayedRows(WithoutReplacement(), 20)
    played.insert(27)
    passes = played.draw(20, *range(10_000)).ids.reshape(-1, 20)
    assert (np.sort(passes, axis=1) == np.arange(7, 27)).all()
    for place in (0, 7, 19):
        assert fits(passes[:, place], dict.fromkeys(range(7, 27), 1 / 20))


def test_uniform_batches_are_those_that_the_generator_draws():
    played = PlayedRows(Uniform(), 50)
    played.insert(80)
    assert played.ids(64, 3) == np.random.default_rng(3).integers(30, 80, 64).tolist()
    played.withhold([40])
    played.offer([40])
    assert played.ids(64, 3) == np.random.default_rng(3).integers(30, 80, 64).tolist()


@each
def test_batches_that_are_drawn_at_once_are_those_that_are_drawn_one_at_a_time(value):
    at_once, one_at_a_time = stirred(value), stirred(value)
    assert at_once.ids(100, 1, 2, 3) == [row_id for seed in (1, 2, 3) for row_id in one_at_a_time.ids(100, seed)]


@each
def test_a_restart_changes_no_batch(value):
    stays, restarts = stirred(value), stirred(value)
    live = range(stays.ring.oldest, stays.ring.write_count)
    for played in (stays, restarts):
        played.offer(live)
        played.draw(30, 5)
    restarts.reopen()
    assert stays.ids(300, 1, 2) == restarts.ids(300, 1, 2)


@each
def test_only_the_order_of_the_rows_counts_and_not_in_which_slots_they_lie(value):
    first, later = PlayedRows(value, 100), PlayedRows(value, 100)
    later.insert(33)
    for played in (first, later):
        played.insert(100, np.linspace(0, 1, 100))
        played.withhold([played.ring.oldest + 3])
    assert [row_id - 33 for row_id in later.ids(500)] == first.ids(500)


@each
def test_no_row_is_drawn_where_all_are_withheld(value):
    played = PlayedRows(value, 10)
    played.insert(10)
    played.withhold(range(10))
    with pytest.raises(EmptyTableError, match="10 rows, and 10 of them are withheld"):
        played.draw(4)
    played.offer([7])
    assert played.ids(3) == [7, 7, 7]


@each
def test_more_rows_than_slots_at_once_leave_the_last_ones(value):
    played = PlayedRows(value, 10)
    played.insert(37, range(37))
    drawn = played.draw(200)
    assert set(drawn.ids.tolist()) == set(range(27, 37))
    if drawn.priorities is not None:
        assert (drawn.priorities == drawn.ids).all()


@each
def test_rows_that_a_rewind_took_are_not_drawn_after_fewer_rows_came_in_their_place(value):
    played = PlayedRows(value, 100)
    played.insert(60)
    played.withhold([0])
    played.rewind(30)
    played.insert(10)
    played.leave(20)
    played.insert(2)
    assert set(played.ids(2000)) == set(range(20, 42))


@each
def test_a_sampler_that_was_told_of_many_rows_at_once_draws_like_one_that_drew_between(value):
    """So many that the tree does not wait for a draw."""
    at_once, between = PlayedRows(value, 150_000), PlayedRows(value, 150_000)
    for played in (at_once, between):
        played.insert(100)
    priorities = np.random.default_rng(0).random(90_000)
    if value != WithoutReplacement():
        at_once.draw(1)
    for _ in range(3):
        at_once.insert(90_000, priorities)
        for part in np.split(priorities, 30):
            between.insert(len(part), part)
            if value != WithoutReplacement():
                between.draw(1)
    assert at_once.ids(1000, 1, 2) == between.ids(1000, 1, 2)


# -- priorities -------------------------------------------------------------------------------------------------------------------------------


@prioritized
def test_an_update_that_comes_late_changes_no_row(value):
    played = PlayedRows(value, 100)
    played.insert(100)
    batch = played.ids(32)
    played.insert(100, np.full(100, 0.5))
    before = played.draw(100)
    assert played.update(batch, np.full(32, 50.0)) == 0
    after = played.draw(100)
    assert before.ids.tolist() == after.ids.tolist()
    assert (played.state.columns["priority"] == 0.5).all()
    assert played.state.values["max_priority"] == 1.0


@prioritized
def test_of_equal_ids_the_last_priority_counts_and_each_live_one_is_counted(value):
    played = PlayedRows(value, 10)
    played.insert(14)
    assert played.update([3, 5, 5, 4, 5], [7.0, 9.0, 2.0, 0.25, 3.0]) == 4
    assert played.state.columns["priority"][[5, 4, 3]].tolist() == [3.0, 0.25, 1.0]
    assert played.state.values["max_priority"] == 3.0


@prioritized
def test_new_rows_get_the_highest_priority_so_far(value):
    played = PlayedRows(value, 4)
    played.insert(1)
    played.insert(1, [0.5])
    played.insert(2)
    assert played.state.columns["priority"].tolist() == [1, 0.5, 1, 1]
    played.update([2], [8.0])
    played.update([2], [0.1])
    played.reopen()
    played.insert(1)
    played.insert(1, [9.0])
    played.insert(1)
    assert played.state.columns["priority"].tolist() == [8, 9, 9, 1]


@prioritized
def test_a_withheld_row_keeps_the_priority_that_it_gets_and_is_drawn_with_it_later(value):
    played = PlayedRows(value, 10)
    played.insert(3)
    played.withhold([0, 1])
    assert played.update([1], [5.0]) == 1
    assert set(played.ids(50)) == {2}
    played.withhold([2])
    played.offer([1])
    assert played.draw(2).priorities.tolist() == [5.0, 5.0]


def test_rows_of_priority_0_are_drawn_only_where_all_are():
    played = PlayedRows(Prioritized(0.0), 10)
    played.insert(10, [0.0] * 10)
    drawn = played.draw(1000)
    assert set(drawn.ids.tolist()) == set(range(10))
    assert set(drawn.probabilities.tolist()) == {drawn.min_probability} == {0.1}
    played.withhold([4, 5])
    assert set(played.ids(1000)) == {0, 1, 2, 3, 6, 7, 8, 9}
    assert played.draw(5).min_probability == 1 / 8
    played.update([2], [1e-300])
    drawn = played.draw(1000)
    assert set(drawn.ids.tolist()) == {2}
    assert drawn.min_probability == 1


def test_a_draw_says_what_was_true_at_its_moment():
    played = PlayedRows(Prioritized(1.0), 10)
    played.insert(4, [1.0, 2.0, 5.0, 0.0])
    before = played.draw(10)
    played.update([0, 1, 2], [5.0, 5.0, 5.0])
    share = {0: 0.125, 1: 0.25, 2: 0.625}
    assert before.probabilities.tolist() == [share[row_id] for row_id in before.ids.tolist()]
    assert (before.size, before.min_probability) == (4, 0.125)
    assert played.draw(10).min_probability == pytest.approx(1 / 3)


@pytest.mark.parametrize("given_to", ["update", "check", "written"])
def test_a_priority_whose_power_is_too_large_is_refused_and_named(given_to):
    played, priorities = PlayedRows(Prioritized(2.0), 10), np.array([3.0, 1e200])
    played.insert(10)
    before = played.draw(50)
    calls = {
        "update": lambda: played.update([1, 2], priorities),
        "check": lambda: played.sampler.check(priorities),
        "written": lambda: played.sampler.written(range(10, 12), priorities),
    }
    with pytest.raises(InvalidArgumentError, match=r"priority \(1e\+200\) to the power of alpha \(2\) must be at most 9\.74531e\+288"):
        calls[given_to]()
    after = played.draw(50)
    assert (before.ids == after.ids).all()
    assert (before.probabilities == after.probabilities).all()
    assert played.state.values["max_priority"] == 1.0


def test_a_priority_whose_power_is_too_small_is_drawn_where_there_is_no_other():
    played = PlayedRows(Prioritized(3.0), 10)
    played.insert(2, [0.0, 1e-300])
    assert set(played.ids(100)) == {1}


def test_every_sampler_of_the_settings_is_there():
    assert {kind.name for kind in SAMPLERS} == set(samplers.SAMPLERS)


# -- threads ----------------------------------------------------------------------------------------------------------------------------------


@each
def test_draws_updates_and_leases_of_several_threads_leave_what_one_thread_leaves(value):
    played, live = stirred(value), 300
    played.reset(live)
    played.insert(live)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        mine, chance = np.arange(number, live, 4) + played.ring.oldest, np.random.default_rng(number)
        try:
            for _ in range(200):
                assert np.isin(played.draw(16, number).ids % live, range(live)).all()
                some = chance.choice(mine, 20)
                played.sampler.withhold(some[:10])
                played.sampler.update(some, chance.random(20), played.ring)
                played.sampler.offer(mine)
            played.sampler.update(mine, 1.0 * mine, played.ring)
        except BaseException as error:  # noqa: BLE001 - the test raises it.
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    drawn = played.draw(100, 7)
    played.reopen()
    if value != WithoutReplacement():
        assert drawn.ids.tolist() == played.draw(100, 7).ids.tolist()
    assert drawn.size == live


# -- what it takes ----------------------------------------------------------------------------------------------------------------------------


def taken(*calls: Callable[[], object], times: int = 60) -> list[float]:
    """The seconds of the processor that each call takes, one after the other in turns: the median of many."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(times):
        for call, found in zip(calls, seconds, strict=True):
            start = time.thread_time()
            call()
            found.append(time.thread_time() - start)
    return [statistics.median(found) for found in seconds]


def test_draws_and_updates_of_10_million_rows_take_at_most_twice_as_long_as_of_100_thousand():
    chance, few, many = np.random.default_rng(0), PlayedRows(Prioritized(0.6), 100_000), PlayedRows(Prioritized(0.6), 10_000_000)
    for played in (few, many):
        rows = played.ring.buffer_size
        played.insert(rows, chance.random(rows) + 0.1)
        played.draw(1)

    def draw(played: PlayedRows) -> Callable[[], object]:
        return lambda: played.sampler.draw(256, [chance], played.ring)

    def update(played: PlayedRows) -> Callable[[], object]:
        return lambda: played.sampler.update(chance.integers(0, played.ring.write_count, 256), chance.random(256), played.ring)

    draws_of_few, draws_of_many, updates_of_few, updates_of_many = taken(draw(few), draw(many), update(few), update(many))
    assert draws_of_many < 2 * draws_of_few
    assert updates_of_many < 2 * updates_of_few
