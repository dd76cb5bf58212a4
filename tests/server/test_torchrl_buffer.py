"""TorchRL's buffer over a `ReplayBuffer`. tests/integration/test_torchrl_side_by_side.py compares it with TorchRL's own."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage

from tdreplay.errors import ClosedError, EmptyTableError, SchemaError, UnimplementedError
from tdreplay_server import ReplayBuffer
from tdreplay_server.torchrl_buffer import TorchRLReplayBuffer
from torchrl_steps import steps

SIZE = 50
BATCH = 16


@pytest.fixture
def buffer() -> Iterator[ReplayBuffer]:
    with ReplayBuffer("cpu", "cpu", SIZE) as opened:
        yield opened


@pytest.fixture
def ours(buffer: ReplayBuffer) -> TorchRLReplayBuffer:
    return TorchRLReplayBuffer(buffer, batch_size=BATCH)


@pytest.mark.parametrize("prefetch", [None, 3])
def test_transforms_and_prefetching_work(buffer, prefetch):
    replay = TorchRLReplayBuffer(buffer, batch_size=BATCH, prefetch=prefetch, transform=lambda data: data.set("twice", data["obs"] * 2))
    replay.extend(steps(0, 30))
    for _, batch in zip(range(8), replay, strict=False):
        assert (batch["twice"] == 2 * batch["obs"]).all()
    replay.shutdown()


def test_an_inverse_transform_changes_what_is_stored(ours):
    ours.append_transform(lambda data: data.set("obs", data["obs"] + 1), invert=True)
    ours.extend(steps(0, 3))
    assert ours.buffer.sample_all()["obs"][:, 0].tolist() == [1, 2, 3]


# -- what is drawn ----------------------------------------------------------------------------------------------------------------------------


def test_every_row_is_drawn_equally_often(buffer):
    replay = TorchRLReplayBuffer(buffer)
    replay.extend(steps(0, SIZE + 20))
    counts = torch.bincount(torch.cat([replay.sample(1000)["obs"][:, 0].long() for _ in range(50)]))
    assert counts[:20].sum() == 0
    assert ((counts[20:] - 1000).abs() < 6 * 1000**0.5).all()


def test_a_generator_or_torch_s_seed_makes_batches_reproducible(buffer):
    TorchRLReplayBuffer(buffer).extend(steps(0, 40))
    by_generator = [TorchRLReplayBuffer(buffer, batch_size=BATCH, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    first, second = ([replay.sample()["index"].tolist() for _ in range(3)] for replay in by_generator)
    assert first == second
    assert first[0] != first[1]
    replay = TorchRLReplayBuffer(buffer, batch_size=BATCH)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(replay.sample()["index"].tolist())
    assert drawn[0] == drawn[1]


def test_a_batch_is_a_copy(ours):
    ours.extend(steps(0, 20))
    ours.sample()["obs"].zero_()
    ours[:]["obs"].zero_()
    assert ours[:]["obs"][:, 0].tolist() == list(range(20))


# -- the same rows ----------------------------------------------------------------------------------------------------------------------------


def test_what_torchrl_stored_is_there_after_the_buffer_was_opened_again(tmp_path):
    with ReplayBuffer("cpu", "cpu", SIZE, directory=tmp_path / "rows") as buffer:
        replay = TorchRLReplayBuffer(buffer)
        replay.extend(steps(0, 40))
        buffer.add_batch(steps(40, 20))
        replay.add(steps(60, 1)[0])
        before, state = replay[:], buffer.state()
    with ReplayBuffer("cpu", "cpu", SIZE, directory=tmp_path / "rows") as buffer:
        replay = TorchRLReplayBuffer(buffer, batch_size=4)
        assert buffer.state() == state
        assert (replay[:] == before).all()
        assert (buffer.sample_all().exclude("row_id") == before).all()
        assert replay.extend(steps(61, 1)).tolist() == [61 % SIZE]
        assert replay.write_count == 62


def test_rows_of_another_schema_are_refused_and_nothing_is_stored(ours):
    ours.extend(steps(0, 5))
    with pytest.raises(SchemaError):
        ours.extend(steps(5, 5).exclude("done"))
    assert len(ours) == 5


def test_an_empty_buffer_and_a_closed_one_say_so(ours, buffer):
    with pytest.raises(EmptyTableError):
        ours.sample()
    assert ours.extend(steps(0, 0)).tolist() == []
    buffer.close()
    with pytest.raises(ClosedError):
        ours.extend(steps(0, 5))


def test_batches_are_whole_while_others_insert_through_both_faces(buffer):
    replay = TorchRLReplayBuffer(buffer, batch_size=200, prefetch=2)
    replay.extend(steps(0, SIZE))
    stop = threading.Event()

    def insert(store: Callable[[TensorDict], object]) -> int:
        blocks = itertools.takewhile(lambda _: not stop.is_set(), itertools.count())
        return sum(7 for block in blocks if store(steps(7 * block, 7)) is not stop)

    def read() -> bool:
        return all(is_whole(replay.sample()) for _ in range(200))

    with ThreadPoolExecutor(4) as threads:
        inserts = [threads.submit(insert, store) for store in (replay.extend, buffer.add_batch)]
        reads = [threads.submit(read) for _ in range(2)]
        assert all(is_whole(replay[:]) for _ in range(100))
        assert all(found.result() for found in reads)
        stop.set()
        stored = sum(insert.result() for insert in inserts)
    replay.shutdown()
    assert (buffer.size, buffer.state().write_count, replay.write_count) == (SIZE, SIZE + stored, SIZE + stored)


def is_whole(batch: TensorDict) -> bool:
    number = batch["obs"][:, :1]
    return bool((batch["obs"] == number).all() and (batch["next", "obs"] == number + 1).all() and (batch["done"] == (number[:, 0] % 2 == 0)).all())


def test_a_collector_of_torchrl_fills_it(buffer):
    collectors, libs = pytest.importorskip("torchrl.collectors"), pytest.importorskip("torchrl.envs.libs.gym")
    replay = TorchRLReplayBuffer(buffer, batch_size=8)
    collector = collectors.Collector(libs.GymEnv("CartPole-v1"), None, frames_per_batch=20, total_frames=60)
    for data in collector:
        replay.extend(data.reshape(-1))
    collector.shutdown()
    assert (len(replay), replay.write_count) == (SIZE, 60)
    batch = replay.sample()
    assert batch["next", "observation"].shape == (8, 4)
    assert batch["action"].shape == (8, 2)


# -- what it refuses --------------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "state_dict": lambda buffer: buffer.state_dict(),
    "load_state_dict": lambda buffer: buffer.load_state_dict({}),
    "dumps": lambda buffer: buffer.dumps("folder"),
    "save": lambda buffer: buffer.save("folder"),
    "loads": lambda buffer: buffer.loads("folder"),
    "storage.dumps": lambda buffer: buffer.storage.state_dict(),
    "writer.dumps": lambda buffer: buffer.writer.dumps("folder"),
    "register_save_hook": lambda buffer: buffer.register_save_hook(print),
    "[...] = ": lambda buffer: buffer.__setitem__(0, steps(7, 1)[0]),
    "storage[...] = ": lambda buffer: buffer.storage.__setitem__(0, steps(7, 1)[0]),
    "set_at_": lambda buffer: buffer.set_at_("obs", torch.zeros(1, 3), [0]),
    "update_": lambda buffer: buffer.update_(steps(7, 1)),
    "write_all": lambda buffer: buffer.write_all(steps(7, 1)),
    "set_storage": lambda buffer: buffer.set_storage(LazyMemmapStorage(3)),
    "set_sampler": lambda buffer: buffer.set_sampler(buffer.sampler),
    "share": lambda buffer: buffer.share(),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_would_part_the_rows_from_their_journal_is_refused_and_changes_nothing(ours, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours.extend(steps(0, 5))
    with pytest.raises(UnimplementedError):
        call(ours)
    assert ours[:]["obs"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert not list(tmp_path.iterdir())


def test_it_belongs_to_its_process(ours):
    with pytest.raises(TypeError, match="spawn_server"):
        pickle.dumps(ours)


def test_a_fork_is_told_so_whatever_lock_another_thread_held(buffer):
    held, done = threading.Event(), threading.Event()

    def hold(data: TensorDict) -> TensorDict:
        held.set()
        done.wait(30)
        return data

    replay = TorchRLReplayBuffer(buffer, batch_size=4, prefetch=2, transform=hold)
    buffer.add_batch(steps(0, 20))
    reader = threading.Thread(target=lambda: replay.sample(), daemon=True)
    reader.start()
    held.wait(30)
    child = os.fork()
    if not child:
        try:
            replay.sample()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told.
            os._exit(7 if type(error).__name__ == "ForkedError" else 8)
        os._exit(9)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        done.set()
        reader.join(30)
        replay.shutdown()


def test_live_slots_need_not_begin_at_0(buffer, tmp_path):
    """After a rewind to the newest three rows of a full ring, its last three slots are live."""
    ours = TorchRLReplayBuffer(buffer, batch_size=BATCH)
    ours.extend(steps(0, SIZE))
    buffer.save(tmp_path / "there")
    written = tmp_path / "there.metadata"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"data_size": 3}))
    buffer.load(tmp_path / "there")
    assert ours[:]["index"].tolist() == ours[0:3]["index"].tolist() == [SIZE - 3, SIZE - 2, SIZE - 1]
    assert (int(ours[-1]["index"]), int(ours[SIZE - 3]["index"])) == (SIZE - 1, SIZE - 3)
    asked = torch.tensor([0, SIZE - 4, SIZE - 3, SIZE - 1, SIZE, -1, -3, -4])
    assert ours.storage.contains(asked).tolist() == [False, False, True, True, False, True, True, False]
