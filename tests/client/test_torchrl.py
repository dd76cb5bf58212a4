"""TorchRL's buffer over a table of a server. tests/integration/test_torchrl_side_by_side.py compares it with TorchRL's own."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchrl.checkpoint import Checkpoint
from torchrl.data import LazyMemmapStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import DoubleToFloat, ObservationNorm

from tdreplay.errors import (
    EmptyTableError,
    InvalidArgumentError,
    MissingRowsError,
    SchemaError,
    SlotIndexError,
    TableNotFoundError,
    UnimplementedError,
)
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer
from torchrl_steps import steps

SIZE = 50
BATCH = 16

WITHOUT_TORCHRL = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] == "torchrl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
import tdreplay_client.torchrl
"""


@pytest.fixture
def replay(address, table):
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=SIZE, batch_size=BATCH) as made:
        yield made


def opened(replay: RemoteTensorDictReplayBuffer, **arguments) -> RemoteTensorDictReplayBuffer:
    """Another buffer over the same table, and over the same connection."""
    return RemoteTensorDictReplayBuffer(replay.buffer, **{"batch_size": BATCH, **arguments})


def pickled(replay: RemoteTensorDictReplayBuffer) -> RemoteTensorDictReplayBuffer:
    """What another process gets."""
    found: RemoteTensorDictReplayBuffer = pickle.loads(pickle.dumps(replay))  # noqa: S301 - it was just made here.
    return found


def test_it_is_what_torchrl_asks_for(replay):
    assert isinstance(replay, (TensorDictReplayBuffer, ReplayBuffer))
    assert (replay.batch_size, replay.dim_extend, replay.shared, replay.storage.ndim, len(replay)) == (BATCH, 0, True, 1, 0)
    assert replay.share() is replay
    assert not replay.can_sample()
    replay.extend(steps(0, 5))
    assert replay.can_sample()
    assert (replay.stats()["size"], replay.stats()["capacity"]) == (5, SIZE)


def test_without_torchrl_the_error_says_what_to_install():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCHRL], capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError: tdreplay_client.torchrl needs torchrl, which is not installed: pip install 'tdreplay[torchrl]'" in ended.stderr


# -- copies in other processes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_a_copy_has_a_connection_of_its_own(replay, copied):
    replay.extend(steps(0, 7))
    replay.empty()
    replay.append_transform(DoubleToFloat())
    with copied(replay) as other:
        assert (other.batch_size, other.priority_key, other.write_count, [type(one) for one in other.transform]) == (
            BATCH,
            "td_error",
            0,
            [DoubleToFloat],
        )
        assert other.extend(steps(0, 5)).tolist() == [0, 1, 2, 3, 4]
        assert (replay.sample()["next", "obs"].dtype, other.sample()["next", "obs"].dtype) == (torch.float32, torch.float32)
    assert (len(replay), replay.write_count) == (5, 5)


def test_a_copy_draws_what_its_generator_would_have_drawn(replay):
    replay.extend(steps(0, 40))
    replay.set_rng(torch.Generator().manual_seed(3))
    replay.sample()
    with pickled(replay) as other:
        assert other.sample()["index"].tolist() == replay.sample()["index"].tolist()


def test_closing_it_closes_the_buffer_that_it_opened_and_no_other(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=SIZE) as buffer:
        with RemoteTensorDictReplayBuffer(buffer) as replay:
            replay.extend(steps(0, 5))
        assert buffer.size == 5
        with pytest.raises(RuntimeError, match="shut down"):
            replay.sample(2)
    with RemoteTensorDictReplayBuffer(address, table=table) as replay:
        pass
    replay.close()
    with pytest.raises(Exception, match="closed"):
        replay.extend(steps(0, 5))


# -- what is drawn ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [None, 3])
def test_a_generator_or_the_buffer_s_seed_makes_batches_reproducible(address, table, prefetch):
    def drawn(seed: int | None = None, generator: torch.Generator | None = None) -> list[list[int]]:
        with RemoteTensorDictReplayBuffer(
            address, table=table, buffer_size=SIZE, batch_size=BATCH, seed=seed, generator=generator, prefetch=prefetch
        ) as replay:
            if not len(replay):
                replay.extend(steps(0, 40))
            return [replay.sample()["index"].tolist() for _ in range(5)]

    for first, again, other in (
        (drawn(7), drawn(7), drawn(8)),
        [drawn(generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)],
    ):
        assert first == again != other
        assert len({tuple(batch) for batch in first}) == 5


def test_without_prefetch_a_batch_is_of_the_moment_of_its_call(address, table):
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=1, batch_size=2) as replay:
        for number in range(20):
            replay.extend(steps(number, 1))
            assert replay.sample()["obs"][:, 0].tolist() == [number, number]


def test_batches_that_are_read_ahead_are_whole_and_come_to_every_thread(replay):
    ahead = opened(replay, prefetch=4)
    ahead.extend(steps(0, SIZE))

    def read(_: int) -> list[int]:
        batches = [batch for _, batch in zip(range(50), ahead, strict=False)]
        assert all((batch["obs"] == batch["index"].unsqueeze(1)).all() for batch in batches)
        return torch.cat([batch["index"] for batch in batches]).tolist()

    with ThreadPoolExecutor(3) as threads:
        assert set(itertools.chain(*threads.map(read, range(3)))) == set(range(SIZE))
    ahead.close()


def test_what_was_read_ahead_is_forgotten_when_the_buffer_is_emptied(replay):
    ahead = opened(replay, prefetch=4)
    ahead.extend(steps(0, 20))
    assert ahead.sample()["obs"][:, 0].max() < 20
    ahead.empty()
    ahead.extend(steps(100, 5))
    assert ahead.sample()["obs"][:, 0].min() >= 100
    ahead.close()


@pytest.mark.parametrize("prefetch", [None, 2])
def test_a_thread_that_waits_for_rows_does_not_stop_the_one_that_brings_them(replay, prefetch):
    waiting = opened(replay, prefetch=prefetch, wait=True)
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(waiting.sample)
        while not batch.running():
            pass
        waiting.extend(steps(0, 3))
        assert len(batch.result(20)) == BATCH
    waiting.close()


@pytest.mark.parametrize("prefetch", [None, 2])
def test_an_empty_table_is_an_error_and_the_buffer_goes_on(replay, prefetch):
    ahead = opened(replay, prefetch=prefetch)
    for _ in range(2):
        with pytest.raises(EmptyTableError):
            ahead.sample()
    ahead.extend(steps(0, 3))
    assert len(ahead.sample()) == BATCH
    ahead.close()


# -- transforms ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [None, 2])
def test_transforms_change_what_is_drawn_and_inverse_ones_what_is_stored(replay, prefetch):
    changed = opened(replay, prefetch=prefetch, transform=lambda data: data.set("twice", data["obs"] * 2))
    changed.append_transform(lambda data: data.set("obs", data["obs"] + 1), invert=True)
    changed.extend(steps(0, 30))
    assert changed.buffer.sample_by_index(3)["obs"][0] == 4
    batch = changed.sample()
    assert (batch["twice"] == 2 * (batch["index"].unsqueeze(1) + 1)).all()
    changed.close()


# -- state --------------------------------------------------------------------------------------------------------------------------------------


def scaled(by: float) -> ObservationNorm:
    """A transform that has a state."""
    return ObservationNorm(loc=torch.zeros(3), scale=torch.full((3,), float(by)), in_keys=["obs"])


def test_a_state_says_where_the_buffer_stands_and_leaves_the_rows_alone(replay):
    replay.extend(steps(0, 10))
    replay.empty()
    replay.extend(steps(0, 4))
    replay.append_transform(scaled(5))
    state = replay.state_dict()
    replay.extend(steps(4, 3))
    other = opened(replay, batch_size=3, transform=scaled(1))
    other.load_state_dict(state)
    assert (other.batch_size, other.write_count, len(other)) == (BATCH, 7, 7)
    assert other.transform[0].scale.tolist() == [5, 5, 5]


def test_a_state_goes_through_torchrl_s_checkpoints(replay, tmp_path):
    replay.extend(steps(0, 10))
    replay.empty()
    Checkpoint(replay=replay).save(tmp_path / "there")
    other = opened(replay, batch_size=3)
    Checkpoint(replay=other).load(tmp_path / "there")
    assert (other.batch_size, other.write_count) == (BATCH, 0)
    replay.dumps(tmp_path / "alone")
    assert {path.suffix for path in (tmp_path / "alone").iterdir()} == {".json"}
    other.loads(tmp_path / "alone")


def test_the_state_of_a_table_that_is_gone_is_refused(address, table, replay):
    replay.extend(steps(0, 10))
    state = replay.state_dict()
    with RemoteTensorDictReplayBuffer(address, table=f"{table}-b", buffer_size=SIZE) as other:
        other.extend(steps(0, 9))
        with pytest.raises(MissingRowsError, match=f"table '{table}-b' has seen 9 rows, and table '{table}' had seen 10"):
            other.load_state_dict(state)


# -- what it refuses ----------------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "storage.state_dict": lambda buffer: buffer.storage.state_dict(),
    "writer.dumps": lambda buffer: buffer.writer.dumps("folder"),
    "sampler.state_dict": lambda buffer: buffer.sampler.state_dict(),
    "register_save_hook": lambda buffer: buffer.register_save_hook(print),
    "[...] = ": lambda buffer: buffer.__setitem__(0, steps(7, 1)[0]),
    "storage[...] = ": lambda buffer: buffer.storage.__setitem__(0, steps(7, 1)[0]),
    "set_at_": lambda buffer: buffer.set_at_("obs", torch.zeros(1, 3), [0]),
    "update_": lambda buffer: buffer.update_(steps(7, 1)),
    "write_all": lambda buffer: buffer.write_all(steps(7, 1)),
    "set_storage": lambda buffer: buffer.set_storage(LazyMemmapStorage(3)),
    "set_sampler": lambda buffer: buffer.set_sampler(buffer.sampler),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_is_refused_and_changes_nothing(replay, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replay.extend(steps(0, 5))
    with pytest.raises(UnimplementedError):
        call(replay)
    assert replay[:]["obs"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert not list(tmp_path.iterdir())


def test_transforms_with_tensors_are_not_pickled(replay, tmp_path):
    replay.append_transform(scaled(5))
    replay.extend(steps(0, 5))
    replay.sample()
    with pytest.raises(UnimplementedError, match="pickle"):
        replay.dumps(tmp_path / "there")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_say_what_is_wrong(address, table, replay):
    for arguments, text in (
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": None, "prefetch": 2}, "prefetch"),
        ({"prefetch": -1}, "prefetch"),
        ({"wait": 1}, "wait"),
        ({"table": "t"}, "table"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            opened(replay, **arguments)
    with pytest.raises(TableNotFoundError):
        RemoteTensorDictReplayBuffer(address, table=f"{table}-none")


def test_bad_rows_and_slots_change_nothing(replay):
    replay.extend(steps(0, 5))
    with pytest.raises(SchemaError):
        replay.extend(steps(5, 5).exclude("done"))
    with pytest.raises(SlotIndexError):
        replay[7]
    assert len(replay) == 5
