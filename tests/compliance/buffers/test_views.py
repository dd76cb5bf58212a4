"""Views through the API of every kind of buffer: where they are taken, what they go together with, and what is refused.

What a view must bring of every kind of episode is in test_trajectories.
"""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import (
    EmptyTableError,
    FieldNotFoundError,
    InvalidArgumentError,
    NoTrajectoriesError,
    SlotIndexError,
    TokenError,
)
from tdreplay.priorities import importance_weights, row_ids_of, sequence_priorities
from tdreplay.samplers import Prioritized
from tdreplay.sequences import Sequences
from tdreplay.system_fields import StepKind
from tdreplay.trajectories import Trajectories
from tdreplay.transitions import Transitions

STEPS = 6
NESTED = Trajectories(final_fields=("obs",))


def episode(episode_id, steps=STEPS, end=StepKind.TRUNCATED, width=3):
    """The rows of an episode: of its steps, and of its final observation if it ended.

    ``obs.pixels`` and ``obs.speed`` tell the step, and ``action`` the episode, too.
    """
    count = steps + bool(end)
    step = torch.arange(count)
    is_step, is_last = step < steps, (step == steps - 1) & bool(end)
    kind = torch.zeros(count, dtype=torch.uint8)
    if end:
        kind[-2:] = torch.tensor([end | StepKind.FINAL_FOLLOWS, StepKind.FINAL], dtype=torch.uint8)
    columns = {
        "obs": {"pixels": (step + 100).to(torch.uint8).unsqueeze(1).repeat(1, width), "speed": step / 2},
        "action": (100 * episode_id + step) * is_step,
        "reward": (1.0 + step) * is_step,
        "terminated": is_last & (end == StepKind.TERMINATED),
        "truncated": is_last & (end == StepKind.TRUNCATED),
        "episode_id": torch.full((count,), episode_id),
        "step": step,
        "step_kind": kind,
    }
    return TensorDict(columns, [count])


@pytest.fixture
def buffer(make_buffer):
    """Rows 0 to 5 are the steps of an episode that was truncated, 6 its final observation, and 7 to 9 the steps of one that is open."""
    buffer = make_buffer(100, trajectories=NESTED)
    buffer.add_batch(episode(1))
    buffer.add_batch(episode(2, 3, StepKind.STEP))
    return buffer


def one(stream):
    with stream:
        return next(stream)


READS = {
    "sample_batch": lambda buffer, view: buffer.sample_batch(8, view=view),
    "sample_random": lambda buffer, view: buffer.sample_random(8, view=view),
    "sample_by_index": lambda buffer, view: buffer.sample_by_index([0, 3], view),
    "sample_by_index_fields": lambda buffer, view: buffer.sample_by_index_fields([0, 3], ["action"], view),
    "epochs": lambda buffer, view: buffer.epochs(8, view=view),
    "stream": lambda buffer, view: one(buffer.stream(8, view=view)),
}


@pytest.fixture(params=READS)
def read(request, kind):
    """Each way to read through a view."""
    if request.param == "stream" and not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    return READS[request.param]


@pytest.fixture(params=[name for name in READS if name != "epochs"])
def look_up(request, kind):
    """Each way to draw or to look up."""
    if request.param == "stream" and not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    return READS[request.param]


# -- what comes -----------------------------------------------------------------------------------------------------------------------------------


def keys(batch):
    return set(batch.keys(include_nested=True, leaves_only=True))


SEEN = {("obs", "pixels"), ("obs", "speed"), ("next", "obs", "pixels"), ("next", "obs", "speed")}
OUTCOME = {("next", "reward"), ("next", "terminated"), ("next", "truncated"), ("next", "done"), "discount", "n_steps"}


def test_each_transition_is_that_of_its_anchor(buffer, kind):
    batch = buffer.sample_batch(256, view=Transitions(2, 0.5, {("obs", "pixels"): 2}))
    assert keys(batch) == SEEN | OUTCOME | {"action", "index", "row_id", "episode_id", "step"}
    assert set(batch["action"].tolist()) == {100, 101, 102, 103, 104, 105, 200}  # The others' next observations did not come yet.
    assert kind.shards or set(batch["row_id"].tolist()) == {0, 1, 2, 3, 4, 5, 7}
    for row in batch:
        step, taken = row["step"].item(), min(2, STEPS - row["step"].item())
        assert row["action"] == 100 * row["episode_id"] + step
        assert row["obs", "pixels"][:, 0].tolist() == [100 + max(0, step - 1), 100 + step]
        assert row["next", "obs", "pixels"][:, 0].tolist() == [99 + step + taken, 100 + step + taken]
        assert row["next", "obs", "speed"] == (step + taken) / 2
        assert row["next", "reward"] == sum(0.5**j * (1 + step + j) for j in range(taken))
        assert row["discount"] == 0.5**taken


def slots_of(buffer, kind) -> torch.Tensor:
    """The slots of rows 0 to 9. Over shards all rows of an episode are on one, where they follow each other."""
    if kind.shards < 2:
        return torch.arange(10)
    stored = buffer.sample_all()
    slots = stored["index"][torch.stack([stored["episode_id"], stored["step"]]).T.tolist().index([1, 0])], stored["index"][stored["action"] == 200][0]
    return torch.tensor([*(slots[0] + kind.shards * torch.arange(7)), *(slots[1] + kind.shards * torch.arange(3))])


def test_named_fields_come_beside_what_the_view_needs(buffer, kind):
    slots = slots_of(buffer, kind)
    batch = buffer.sample_by_index_fields(slots[[3, 0]], ["action", "row_id"], Transitions())
    assert keys(batch) == SEEN | OUTCOME | {"action", "row_id"}
    batch = buffer.sample_by_index_fields(slots[[3, 0]], "action", Sequences(2))
    assert keys(batch) == {"action", "episode_id", "step", "mask", "is_init", "burn_in"}
    assert batch["is_init"].tolist() == [[False, False], [True, False]]
    with pytest.raises(FieldNotFoundError, match="nothing"):
        buffer.sample_by_index_fields(slots[[0]], ["nothing"], Transitions())


@pytest.mark.parametrize(
    ("index", "shape"), [(3, ()), ([3], (1,)), (torch.tensor([[3, 0, 1], [2, 2, 4]]), (2, 3)), (slice(1, 4), (3,)), (range(2), (2,))]
)
def test_an_index_gives_its_shape(buffer, kind, index, shape):
    steps, slots = torch.arange(10)[index], slots_of(buffer, kind)[index]
    asked = index if kind.shards < 2 else slots
    batch = buffer.sample_by_index(asked, Transitions())
    assert batch.batch_size == shape
    assert torch.equal(batch["step"], steps)
    assert torch.equal(batch["next", "obs", "pixels"][..., 0], (steps + 101).to(torch.uint8))
    batch = buffer.sample_by_index(asked, view=Sequences(4, 2))
    assert batch.batch_size == (*shape, 6)
    assert torch.equal(batch["index"][..., 0], slots)
    assert kind.shards or torch.equal(batch["row_id"][..., 0], slots)
    assert torch.equal(batch["mask"].sum(-1), 6 - (2 - steps).clamp(min=0) - (steps - 2).clamp(min=0))


def test_views_and_rows_take_turns(buffer):
    for view, field, shape in [
        (None, "step", ()),
        (Transitions(), "discount", ()),
        (Transitions(3), "n_steps", ()),
        (Sequences(2), "mask", (2,)),
    ] * 2:
        for _ in range(3):
            assert buffer.sample_batch(8, view=view)[field].shape == (8, *shape)


@pytest.mark.parametrize(
    "view", [Transitions(3, frame_stack={"obs": 4}), Sequences(4, 2, next_obs=True, step_ids=True)], ids=["transitions", "sequences"]
)
def test_a_seed_brings_the_same_batch_in_process_and_over_the_wire(buffer, in_process, view):
    other = in_process(100, trajectories=NESTED)
    other.add_batch(episode(1))
    other.add_batch(episode(2, 3, StepKind.STEP))
    for seed in range(3):
        assert (buffer.sample_batch(32, seed=seed, view=view) == other.sample_batch(32, seed=seed, view=view)).all()


def test_a_buffer_whose_table_is_made_later_learns_of_its_trajectories(kind, maker):
    if kind.server is None:
        pytest.skip("it is its own table")
    buffer = maker(kind)(100)
    with pytest.raises(NoTrajectoriesError):
        buffer.sample_batch(1, view=Transitions())
    buffer.drop()
    same = type(buffer)(kind.place_of(buffer), table=buffer.table, buffer_size=100, trajectories=NESTED)
    same.add_batch(episode(1))
    same.close()
    assert buffer.sample_batch(4, view=Transitions()).batch_size == (4,)


# -- what is refused ------------------------------------------------------------------------------------------------------------------------------


def test_a_view_of_rows_that_are_no_steps_is_refused(make_buffer, read):
    buffer = make_buffer(100)
    buffer.add_batch(TensorDict({"obs": torch.zeros(9, 2)}, [9]))
    with pytest.raises(NoTrajectoriesError, match=r"a view \(Transitions\) needs steps"):
        read(buffer, Transitions())


@pytest.mark.parametrize("view", [Transitions, "transitions", 3])
def test_what_is_no_view_is_refused(buffer, read, view):
    with pytest.raises(InvalidArgumentError, match=r"view \(.*must be Transitions"):
        read(buffer, view)


@pytest.mark.parametrize("name", ["nothing", ("obs", "nothing"), "obs.pixels.nothing"])
def test_a_stack_of_a_field_that_is_not_there_is_refused(buffer, look_up, name):
    with pytest.raises(FieldNotFoundError, match="nothing"):
        list(look_up(buffer, Transitions(frame_stack={name: 2})))


@pytest.mark.parametrize("name", ["reward", "truncated", "row_id"])
def test_a_stack_of_an_outcome_or_a_system_field_is_refused(buffer, read, name):
    with pytest.raises(InvalidArgumentError, match=name):
        read(buffer, Transitions(frame_stack={name: 2}))


@pytest.mark.parametrize("view", [Transitions(100), Transitions(frame_stack={"obs": 101}), Sequences(101), Sequences(51, burn_in=50)])
def test_a_window_longer_than_the_table_is_refused(buffer, kind, look_up, view):
    words = "a shard" if kind.shards > 1 else "the table: its buffer_size is 100"
    with pytest.raises(InvalidArgumentError, match=rf"a window of \d+ steps is longer than {words}"):
        list(look_up(buffer, view))


def test_a_window_as_long_as_the_table_is_taken(buffer):
    assert buffer.sample_batch(4, view=Transitions(99)).batch_size == (4,)
    assert buffer.sample_batch(4, view=Sequences(50, burn_in=50)).batch_size == (4, 100)


@pytest.mark.parametrize(
    ("index", "view"),
    [
        (6, Transitions()),  # The final observation.
        (9, Transitions()),  # The next observation did not come yet.
        (8, Transitions(2)),
        (8, Sequences(3)),
        (9, Sequences(1, next_obs=True)),
        (3, Sequences(4, padding="drop")),
        (3, Sequences(1, stride=2)),
        (10, Transitions()),  # No row.
    ],
)
def test_an_index_of_which_the_view_cannot_be_made_is_refused(buffer, kind, index, view):
    slots = [*slots_of(buffer, kind).tolist(), 10 if kind.shards < 2 else 99]
    with pytest.raises(SlotIndexError, match=f"index {slots[index]} holds no"):
        buffer.sample_by_index([slots[0], slots[index]], view)


def test_a_table_without_an_anchor_is_empty_for_a_view(make_buffer):
    buffer = make_buffer(100, trajectories=NESTED)
    with pytest.raises(EmptyTableError):
        buffer.sample_batch(1, view=Transitions())
    buffer.add_batch(episode(2, 3, StepKind.STEP))
    with pytest.raises(EmptyTableError):
        buffer.sample_batch(1, view=Transitions(3))
    assert buffer.sample_batch(8, view=Transitions(2))["step"].tolist() == [0] * 8
    assert buffer.sample_batch(8)["step"].shape == (8,)


def test_a_batch_waits_for_the_first_anchor(make_buffer):
    buffer = make_buffer(100, trajectories=NESTED)
    buffer.add_batch(episode(1))
    assert buffer.sample_batch(8, wait=True, view=Transitions()).batch_size == (8,)


# -- priorities -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prioritized(make_buffer):
    buffer = make_buffer(100, sampler=Prioritized(alpha=1.0), trajectories=NESTED)
    buffer.add_batch(episode(1))
    return buffer


def prioritize(prioritized) -> None:
    """Gives the first four steps of the episode these priorities, and the others none."""
    stored = prioritized.sample_all()
    row_ids = stored["row_id"][stored["step"].argsort()][:6]
    prioritized.update_priorities(row_ids, [1.0, 0.0, 6.0, 3.0, 0.0, 0.0])


def test_a_sequence_has_one_probability_one_weight_and_one_priority(prioritized):
    prioritize(prioritized)
    batch = prioritized.sample_batch(64, view=Sequences(3, 2))
    exact = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)[batch["step"][:, 2]]
    assert torch.equal(batch["probability"], batch["probability"][:, :1].expand(64, 5))
    torch.testing.assert_close(batch["probability"][:, 0], exact)
    torch.testing.assert_close(importance_weights(batch, 1.0, "table"), (0.1 / exact).to(torch.float32))
    errors = sequence_priorities(torch.ones(64, 5), batch["mask"] & ~batch["burn_in"])
    assert prioritized.update_priorities(row_ids_of(batch), errors).stale == 0
    assert set(prioritized.sample_batch(64, view=Sequences(3, 2))["priority"].unique().tolist()) <= {1.0}


def test_a_transition_has_the_probability_of_its_anchor(prioritized):
    prioritize(prioritized)
    batch = prioritized.sample_batch(64, view=Transitions(3))
    torch.testing.assert_close(batch["probability"], torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)[batch["step"]])
    batch = prioritized.sample_batch(64, view=Transitions(3), uniform=True)
    assert "probability" not in batch
    assert set(importance_weights(batch, 0.5).tolist()) == {1.0}


# -- streams --------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(buffer, kind):
    """A buffer that has streams."""
    if not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    return buffer


VIEW = Transitions(3, frame_stack={"obs": 2})


def test_a_stream_goes_on_with_the_token_of_another_of_its_view(remote):
    with remote.stream(8, seed=5, view=VIEW) as batches:
        before = list(itertools.islice(batches, 3))
        token = json.loads(json.dumps(batches.state_dict()))
        after = list(itertools.islice(batches, 3))
    assert not (before[0] == after[0]).all()
    with remote.stream(8, seed=6, view=Transitions(3, frame_stack={("obs",): 2})) as batches:
        batches.load_state_dict(token)
        for expected in after:
            assert (next(batches) == expected).all()


@pytest.mark.parametrize(
    "view", [None, Sequences(2), Transitions(3), Transitions(3, 0.5, {"obs": 2}), Transitions(3, frame_stack={"obs": 3})], ids=str
)
def test_a_token_of_a_stream_of_another_view_is_refused(remote, kind, view):
    with remote.stream(8, seed=5, view=VIEW) as one, remote.stream(8, seed=6, view=view) as other:
        for stream, token in [(one, other.state_dict()), (other, one.state_dict())]:
            with pytest.raises(TokenError):
                stream.load_state_dict(token)
        with remote.stream(8, seed=5, view=VIEW) as same:
            expected = next(same) if kind.shards > 1 else remote.sample_batch(8, seed=5, view=VIEW)
        assert (next(one) == expected).all()


def test_a_token_of_a_stream_without_a_view_is_what_it_was(remote, kind):
    with remote.stream(8, seed=5) as batches:
        assert batches.state_dict().keys() - ({"shards", "taken"} if kind.shards else set()) == {
            *("version", "table", "batch_size", "seed", "position")
        }


def test_a_stream_of_a_view_brings_the_named_fields(remote):
    with remote.stream(8, fields=["action"], view=Transitions()) as batches:
        assert keys(next(batches)) == SEEN | OUTCOME | {"action"}


def test_a_stream_of_sequences_takes_one_error_for_each(prioritized, kind):
    if not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    with prioritized.stream(8, prefetch=1, view=Sequences(3, 2)) as batches:
        batch = next(batches)
        trained = batch["mask"] & ~batch["burn_in"]
        with pytest.raises(InvalidArgumentError, match=r"priorities of shape \[8, 5\] must be 8"):
            batches.update_priorities(batch, torch.ones(8, 5))
        batches.update_priorities(batch, sequence_priorities(torch.full((8, 5), -7.0), trained))
        while not batches.updated.updated:
            next(batches)
        drawn = set(row_ids_of(batch).tolist())
        batch = prioritized.sample_batch(64, view=Sequences(3, 2))
        assert {priority for row, priority in zip(row_ids_of(batch), batch["priority"][:, 0].tolist(), strict=True) if row in drawn} <= {7.0}


@pytest.mark.parametrize("view", [Transitions(frame_stack={"obs": 4}), Sequences(8, next_obs=True)], ids=["transitions", "sequences"])
def test_a_part_of_a_batch_keeps_its_values_while_the_stream_goes_on(make_buffer, kind, view):
    """Batches are views of memory that is shared with the server: it must not come to hold another batch while a part of one is in use."""
    if not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    buffer = make_buffer(100, trajectories=NESTED)
    buffer.add_batch(episode(1, 90, width=20_000))
    with buffer.stream(16, view=view) as batches:
        kept = [(batch["next", "obs", "pixels"], batch["step"]) for batch in itertools.islice(batches, 8)]
        for _ in range(40):
            next(batches)
    for pixels, step in kept:
        newest = pixels[:, -1] if isinstance(view, Transitions) else pixels[:, 0]
        first = step if isinstance(view, Transitions) else step[:, 0]
        assert torch.equal(newest, (first + 101).to(torch.uint8).unsqueeze(1).expand(-1, 20_000))
