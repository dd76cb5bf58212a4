"""The trees of samplers, against what they stand for: a list of weights, a list of keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdreplay.priorities import MAX_WEIGHT
from tdreplay_server.tables.samplers.best_tree import BestTree
from tdreplay_server.tables.samplers.sum_tree import SumTree

few = settings(max_examples=60, deadline=None)
SMALLEST = math.ulp(0.0)
SIZES = st.sampled_from([1, 2, 15, 16, 17, 255, 4096, 4097, 70_000])
"""Of one, two and three levels, with blocks that are full or not."""

weights = st.one_of(st.sampled_from([0.0, SMALLEST, 3 * SMALLEST, 2.0**-1022, 1e-200, 1.0, 1 + 2**-52, 1e200, MAX_WEIGHT]), st.floats(0, 10))
written = st.lists(
    st.one_of(
        st.tuples(st.just("some"), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), weights), min_size=1, max_size=300)),
        st.tuples(st.just("range"), st.tuples(st.floats(0, 1), st.floats(0, 1), st.lists(weights, min_size=1, max_size=40))),
    ),
    max_size=6,
)


def write(tree: SumTree | BestTree, model: np.ndarray, what: str, how) -> None:
    if what == "some":
        leaves, values = np.array([int(place * len(model)) for place, _ in how]), np.array([value for _, value in how])
        tree.write(leaves, values)
        for leaf, value in zip(leaves, values, strict=True):
            model[leaf] = value
    else:
        start, stop = sorted(int(place * len(model)) for place in how[:2])
        model[start:stop] = np.resize(how[2], stop - start)
        tree.write_range(start, stop, model[start:stop].copy())


@few
@given(SIZES, written)
def test_sums_and_the_smallest_weight_are_those_of_the_weights_however_they_were_written(size, writes):
    tree, model = SumTree(size), np.zeros(size)
    for what, how in writes:
        write(tree, model, what, how)
        assert (tree.weights[:size] == model).all()
        assert tree.total == pytest.approx(math.fsum(model), rel=1e-12, abs=0)
        assert tree.smallest() == min(model[model > 0], default=0)


@few
@given(SIZES, written)
def test_a_tree_does_not_depend_on_how_its_weights_were_written(size, writes):
    tree, model, anew, shares = SumTree(size), np.zeros(size), SumTree(size), np.random.default_rng(0).random(50)
    for what, how in writes:
        write(tree, model, what, how)
    anew.write_range(0, size, model)
    assert tree.total == anew.total
    if tree.total:
        assert (tree.draw(shares, 0) == anew.draw(shares, 0)).all()


@few
@given(SIZES, written, st.lists(st.floats(0, 1, exclude_max=True), max_size=20), st.just(0.0) | st.floats(0, 1, exclude_max=True))
@example(70_000, [("range", (0.0, 1.0, [1.0160961964773998]))], [], 0.375)
def test_a_share_draws_the_leaf_in_whose_part_of_the_sum_it_lies_and_never_one_of_weight_0(size, writes, shares, place):
    tree, model = SumTree(size), np.zeros(size)
    for what, how in writes:
        write(tree, model, what, how)
    if not tree.total:
        return
    shares = np.array([0.0, SMALLEST, *shares, 1 - 2**-53])
    first = int(place * size)
    leaves = tree.draw(shares, first)
    assert (model[leaves] > 0).all()
    leaves, model = (leaves - first) % size, np.roll(model, -first)
    scaled = model / tree.total if tree.total > 1e-200 else model * 2.0**200 / (tree.total * 2.0**200)
    ends = np.cumsum(scaled)[leaves]
    starts, tolerance = ends - scaled[leaves], 1e-9
    # The leaves are a circle: rounding may take the begin of the first one to the end of the last one.
    inside = [(ends >= share - tolerance) & (starts <= share + tolerance) for share in (shares, shares + 1, shares - 1)]
    assert np.logical_or.reduce(inside).all()


def test_the_smallest_numbers_that_there_are_are_drawn_in_their_proportion():
    tree = SumTree(10)
    tree.write(np.array([3, 7]), np.array([SMALLEST, 2 * SMALLEST]))
    assert np.bincount(tree.draw((np.arange(3000) + 0.5) / 3000, 0), minlength=10).tolist() == [0, 0, 0, 1000, 0, 0, 0, 2000, 0, 0]


def test_batches_that_are_drawn_at_once_are_those_that_are_drawn_one_at_a_time():
    chance, tree = np.random.default_rng(0), SumTree(100_000)
    tree.write_range(0, 100_000, chance.random(100_000))
    shares = chance.random(3000)
    assert tree.draw(shares, 77).tolist() == [leaf for part in np.split(shares, 300) for leaf in tree.draw(part, 77)]


@few
@given(SIZES, st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.integers(0))
def test_ranks_count_the_leaves_of_weight_1_from_any_leaf_on(size, percent, place, seed):
    chance, tree = np.random.default_rng(seed), SumTree(size, np.uint8)
    model = (chance.random(size) < percent / 100).astype(np.uint8)
    tree.write_range(0, size, model)
    ones, first = np.flatnonzero(model), int(place * size)
    assert tree.total == len(ones)
    if len(ones):
        ranks = np.arange(len(ones))
        assert tree.at(ranks, first).tolist() == [*ones[ones >= first], *ones[ones < first]]


@few
@given(SIZES, written, st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_the_best_leaves_come_in_order_and_the_oldest_of_equal_ones_first(size, writes, count, place):
    oldest = int(place * size)
    tree, model = BestTree(size, lambda slots: (slots - oldest) % size), np.full(size, -np.inf)
    for what, how in writes:
        write(tree, model, what, how)
        ages = (np.arange(size) - oldest) % size
        order = np.lexsort((ages, -model))
        assert tree.best(count).tolist() == order[model[order] > -np.inf][:count].tolist()
