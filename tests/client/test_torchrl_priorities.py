"""Priorities through TorchRL's buffer over a table of a server: drawn as TorchRL weighs them, and updated by row id."""

from __future__ import annotations

import pickle
import time

import pytest
import torch
from torchrl.data.replay_buffers.scheduler import LinearScheduler
from torchrl.trainers import ReplayBufferTrainer

from tdreplay.errors import FieldNotFoundError, InvalidArgumentError, NoPrioritiesError, SlotIndexError
from tdreplay.samplers import Prioritized
from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer
from torchrl_steps import steps

SIZE = 50
ALPHA = 0.7
ROWS = 20


@pytest.fixture(params=[None, 2], ids=["single", "ahead"])
def replay(request, address, table):
    with RemoteTensorDictReplayBuffer(
        address, table=table, buffer_size=SIZE, sampler=Prioritized(ALPHA), batch_size=400, beta=0.5, prefetch=request.param
    ) as made:
        made.extend(steps(0, ROWS))
        yield made


@pytest.fixture
def uniform(address, table):
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=SIZE, batch_size=400) as made:
        made.extend(steps(0, ROWS))
        yield made


def priorities(replay: RemoteTensorDictReplayBuffer, of: int = 2000) -> dict[int, float]:
    """The raw priority of each row that can be drawn, by what the row holds."""
    batch = replay.buffer.sample_batch(of)
    return dict(zip(batch["obs"][:, 0].long().tolist(), batch["priority"].tolist(), strict=True))


def eventually(replay: RemoteTensorDictReplayBuffer, wanted: dict[int, float]) -> dict[int, float]:
    """All priorities, once these rows have these: with prefetch, updates are not waited for."""
    deadline = time.monotonic() + 20
    while True:
        found = priorities(replay, 20_000)
        if {row: found.get(row) for row in wanted} == pytest.approx(wanted):
            return found
        assert time.monotonic() < deadline, found


def set_all(replay: RemoteTensorDictReplayBuffer) -> torch.Tensor:
    """Gives row k the priority k + 1."""
    raw = torch.arange(1.0, ROWS + 1)
    replay.update_priority(torch.arange(ROWS), raw)
    eventually(replay, dict(enumerate(raw.tolist())))
    return raw


def test_rows_are_drawn_and_weighed_as_torchrl_says(replay):
    """Its PrioritizedSampler: (p + eps) ** alpha over their sum, and weights (p_i / p_min) ** -beta."""
    share = set_all(replay) ** ALPHA
    drawn = torch.cat([replay.buffer.sample_batch(5000)["index"] for _ in range(10)])
    expected = share / share.sum() * 50_000
    assert ((torch.bincount(drawn, minlength=ROWS) - expected).abs() < 6 * expected.sqrt()).all()
    batch, info = replay.sample(return_info=True)
    assert torch.allclose(batch["priority_weight"], (share / share.min())[batch["index"]] ** -0.5, rtol=1e-5)
    assert torch.equal(info["priority_weight"], batch["priority_weight"])
    assert batch["priority_weight"].dtype == torch.float32
    assert set(batch.keys()) == {"obs", "done", "next", "index", "row_id", "priority_weight"}


def test_beta_is_annealed_by_a_scheduler_of_torchrl(replay):
    set_all(replay)
    scheduler = LinearScheduler(replay, param_name="beta", final_value=0.0, num_steps=2)
    for _ in range(2):
        scheduler.step()
    assert (replay.sample()["priority_weight"] == 1).all()
    with pickle.loads(pickle.dumps(replay)) as copy:  # noqa: S301 - it was just made here.
        assert copy.sampler.beta == 0


def test_new_rows_have_the_highest_priority_so_far(replay):
    set_all(replay)
    replay.extend(steps(20, 2))
    eventually(replay, {20: 20, 21: 20})


def test_priorities_that_rows_bring_are_theirs(address, table):
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=SIZE, sampler="prioritized", batch_size=10) as replay:
        data = steps(0, 3)
        data["td_error"] = torch.tensor([[1.0, 3.0], [5.0, 2.0], [0.5, 4.0]])
        replay.extend(data)
        one = steps(3, 1)[0]
        one["td_error"] = torch.tensor([7.0, 6.0])
        replay.add(one)
        assert priorities(replay) == pytest.approx({0: 3, 1: 5, 2: 4, 3: 7})
        data["td_error"] = torch.tensor([[1.0, -3.0], [5.0, 2.0], [0.5, 4.0]])
        replay.extend(data, update_priority=False)
        assert priorities(replay)[2] in (pytest.approx(4), pytest.approx(7))


def test_a_late_update_changes_no_other_row(replay):
    """The rows of a batch are overwritten before its priorities come."""
    late, info = replay.sample(return_info=True)
    replay.extend(steps(100, SIZE))
    before = priorities(replay, 20_000)
    late["td_error"] = torch.full((400,), 99.0)
    replay.update_tensordict_priority(late)
    replay.update_priority(info["index"], late["td_error"])
    replay.update_priority(late["index"], late["td_error"])
    batch = replay.buffer.sample_batch(1)
    replay.update_tensordict_priority(batch.set("td_error", torch.ones(1) * 42))  # After the others.
    row = int(batch["obs"][0, 0])
    after = eventually(replay, {row: 42})
    assert {**after, row: before[row]} == before


def test_a_slot_means_the_row_that_was_given_last(replay):
    first = replay.extend(steps(20, 30))
    again = replay.extend(steps(50, 50))
    assert sorted(first.tolist() + list(range(20))) == sorted(again.tolist())
    replay.update_priority(again[:2], 5.0)
    replay.update_priority(first, 7.0)
    found = eventually(replay, {50: 5, 51: 5})
    assert {priority for row, priority in found.items() if row > 51} == {1}


def test_another_client_s_slots_are_those_of_now(replay, address, table):
    with RemoteTensorDictReplayBuffer(address, table=table) as other:
        other.update_priority(torch.tensor([3]), torch.tensor([9.0]))
        assert priorities(other)[3] == pytest.approx(9)
        for wrong in (-1, ROWS, SIZE):
            with pytest.raises(SlotIndexError):
                other.update_priority(torch.tensor([3, wrong]), torch.ones(2))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_bad_priority_changes_nothing(replay, wrong):
    set_all(replay)
    replay.sample()
    before = priorities(replay, 20_000)
    batch = replay.sample()
    batch["td_error"] = torch.ones(400)
    batch["td_error"][7] = wrong
    data = steps(20, 3).set("td_error", torch.tensor([1.0, 2.0, wrong]))
    for call in (
        lambda: replay.update_tensordict_priority(batch),
        lambda: replay.update_priority(batch["index"], batch["td_error"]),
        lambda: replay.update_priority(0, wrong),
        lambda: replay.extend(data),
        lambda: replay.add(data[2]),
    ):
        with pytest.raises(InvalidArgumentError, match="priority"):
            call()
    assert (priorities(replay, 20_000), len(replay)) == (before, ROWS)


def test_a_batch_without_priorities_says_which_field_is_missing(replay):
    with pytest.raises(FieldNotFoundError, match="'td_error'"):
        replay.update_tensordict_priority(replay.sample())


def test_a_row_of_error_0_is_drawn_again_some_day(replay):
    batch = replay.sample()
    replay.update_tensordict_priority(batch.set("td_error", torch.zeros(400)))
    while (least := min(replay.buffer.sample_batch(10)["priority"])) == 1:
        pass
    assert least == pytest.approx(1e-8)


def test_a_table_without_priorities_says_so_where_it_was_asked(uniform):
    for _ in range(2):  # Before and after a batch.
        with pytest.raises(NoPrioritiesError):
            uniform.update_priority(torch.tensor([0]), torch.tensor([1.0]))
        uniform.update_tensordict_priority(uniform[:])
        assert "priority_weight" not in uniform.sample().keys()  # noqa: SIM118 - a TensorDict iterates over its rows.


def test_a_trainer_of_torchrl_updates_them(replay):
    hooks = ReplayBufferTrainer(replay, batch_size=400, flatten_tensordicts=True)
    hooks.extend(steps(20, 5))
    batch = hooks.sample(None)
    hooks.update_priority(batch.set("td_error", batch["obs"][:, 0] + 1))
    eventually(replay, {0: 1, 7: 8, 24: 25})
    hooks.load_state_dict(hooks.state_dict())
