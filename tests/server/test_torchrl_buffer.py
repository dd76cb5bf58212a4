"""TorchRL's buffer over a `ReplayBuffer`: what TorchRL's users do with theirs, side by side with TorchRL's own storage in files."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from tdreplay.errors import ClosedError, EmptyTableError, SchemaError, UnimplementedError
from tdreplay_server import ReplayBuffer
from tdreplay_server.torchrl_buffer import TorchRLReplayBuffer

SIZE = 50
BATCH = 16


def steps(first: int, rows: int, *shape: int) -> TensorDict:
    """Rows that know which ones they are, in every field of them."""
    number = torch.arange(first, first + rows).reshape(rows, *[1] * len(shape)).expand(rows, *shape)
    return TensorDict(
        {
            "obs": number.unsqueeze(-1).expand(rows, *shape, 3).to(torch.float32).clone(),
            "done": (number % 2 == 0).clone(),
            "next": TensorDict({"obs": (number + 1).unsqueeze(-1).to(torch.float64).clone()}, [rows, *shape]),
        },
        [rows, *shape],
    )


@pytest.fixture
def buffer() -> Iterator[ReplayBuffer]:
    with ReplayBuffer("cpu", "cpu", SIZE) as opened:
        yield opened


@pytest.fixture
def ours(buffer: ReplayBuffer) -> TorchRLReplayBuffer:
    return TorchRLReplayBuffer(buffer, batch_size=BATCH)


@pytest.fixture
def theirs(tmp_path: Path) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyMemmapStorage(SIZE, scratch_dir=tmp_path / "theirs"), batch_size=BATCH)


def description(data: TensorDict) -> dict[object, object]:
    """What two batches have in common whatever was drawn: batch size, names of dimensions, keys, shapes, dtypes, devices."""
    fields = {key: (value.shape, value.dtype, value.device) for key, value in data.items(include_nested=True, leaves_only=True)}
    return {"batch": data.batch_size, "names": data.names, **fields}


# -- side by side -----------------------------------------------------------------------------------------------------------------------------

CALLS = {
    "sample": lambda buffer: buffer.sample(),
    "sample of a size": lambda buffer: buffer.sample(1),
    "sample with its info": lambda buffer: buffer.sample(return_info=True)[0],
    "next of the iteration": lambda buffer: next(iter(buffer)),
    "all": lambda buffer: buffer[:],
    "a row": lambda buffer: buffer[3],
    "the last row": lambda buffer: buffer[-1],
    "a slice": lambda buffer: buffer[2:8:2],
    "some rows": lambda buffer: buffer[torch.tensor([4, 1, 4])],
    "a list": lambda buffer: buffer[[4, 1]],
    "a mask": lambda buffer: buffer[torch.arange(len(buffer)) % 3 == 0],
    "in order": lambda buffer: buffer.read_all_in_order(5),
}


@pytest.mark.filterwarnings("ignore:Got conflicting batch_sizes")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("shape", [(), (4,)], ids=["steps", "trajectories"])
@pytest.mark.parametrize("rows", [SIZE // 2, SIZE + 7], ids=["filling", "wrapped"])
def test_a_batch_is_as_torchrl_s_own(ours, theirs, call, shape, rows):
    for first in range(0, rows, 5):
        given = [buffer.extend(steps(first, min(5, rows - first), *shape)) for buffer in (ours, theirs)]
        assert given[0].tolist() == given[1].tolist()
    mine, wanted = call(ours), call(theirs)
    assert description(mine) == description(wanted)
    assert type(mine) is TensorDict
    if "sample" not in call.__code__.co_names and "iter" not in call.__code__.co_names:
        assert (mine == wanted).all()


def test_add_and_extend_give_slots_and_sampled_rows_may_be_stored_again(ours, theirs):
    for buffer in (ours, theirs):
        row, rows = steps(0, 1)[0], steps(1, 3)
        assert int(buffer.add(row)) == 0
        assert buffer.extend(rows).tolist() == [1, 2, 3]
        assert (len(buffer), buffer.write_count) == (4, 4)
        assert buffer.extend(buffer[[1, 2, 3]]).tolist() == [4, 5, 6]  # With the field index, which says other slots.
        assert buffer[4:]["index"].tolist() == [4, 5, 6]
    assert (row.get("index", None) is None, rows.get("index", None) is None) == (True, True)


def test_more_rows_than_there_are_slots_leave_the_last_ones(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 2 * SIZE + 3))
    assert (ours[:] == theirs[:]).all()
    assert (len(ours), ours.write_count, ours.stats()["capacity"]) == (SIZE, theirs.write_count, SIZE)


def test_info_has_the_slots(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 20))
        batch, info = buffer.sample(return_info=True)
        assert (info["index"] == batch["index"]).all()
        assert (batch["obs"][:, 0] == info["index"]).all()


def test_empty_leaves_no_row_and_the_buffer_goes_on(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 20))
        buffer.empty()
        assert (len(buffer), buffer.write_count) == (0, 0)
        buffer.extend(steps(100, 5))
        assert buffer[:]["obs"][:, 0].tolist() == [100, 101, 102, 103, 104]
        buffer.empty(empty_write_count=False)
        assert (len(buffer), buffer.write_count) == (0, 5)


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


def test_trajectories_are_found_after_the_ring_wrapped(ours, theirs):
    from torchrl.data import traj

    for buffer in (ours, theirs):
        for episode in range(12):
            data = steps(10 * episode, 6)
            data["done"] = torch.arange(6).eq(5)
            data["episode"] = torch.full((6,), episode)
            buffer.extend(data)
    mine, wanted = (buffer.query(traj.length >= 6, trajectory_key="episode") for buffer in (ours, theirs))
    assert [list(one.obs[:, 0]) for one in mine] == [list(one.obs[:, 0]) for one in wanted]


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
