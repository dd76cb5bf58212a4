"""What a replay buffer does, of whatever kind it is."""

from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict

from compliance.kinds import MakeBuffer
from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import InvalidArgumentError
from tdreplay.fields import DTYPES


def filled(make_buffer: MakeBuffer, n: int, buffer_size: int) -> BaseReplayBuffer:
    buffer = make_buffer(buffer_size)
    buffer.add_batch(rows(n))
    return buffer


def all_numbers(batches):
    return list(itertools.chain.from_iterable(map(numbers, batches)))


def test_a_new_buffer_is_empty(make_buffer):
    buffer = make_buffer(10)
    assert (len(buffer), buffer.size, buffer.data_size, buffer.pointer, buffer.buffer_size) == (0, 0, 0, 0, 10)
    assert (buffer.device, buffer.storing_device) == (torch.device("cpu"), torch.device("cpu"))


def test_added_rows_come_back_by_index_in_the_order_asked_for(make_buffer, kind):
    buffer = filled(make_buffer, 6, 10)
    batch = buffer.sample_by_index([4, 0, 4, 2])
    assert batch.batch_size == torch.Size([4])
    assert numbers(batch) == [4, 0, 4, 2]
    assert batch["index"].tolist() == [4, 0, 4, 2]
    assert batch["row_id"].tolist() == kind.row_ids([4, 0, 4, 2])


@pytest.mark.parametrize(
    "index", [[1, 3], (1, 3), range(1, 4, 2), torch.tensor([1, 3]), torch.tensor([1, 3], dtype=torch.int32), np.array([1, 3])], ids=str
)
def test_an_index_may_be_a_list_a_range_or_a_tensor(make_buffer, index):
    assert numbers(filled(make_buffer, 6, 10).sample_by_index(index)) == [1, 3]


def test_add_stores_one_row_at_the_pointer(make_buffer, kind):
    buffer = make_buffer(3)
    for number in range(4):
        assert buffer.pointer == number % 3
        buffer.add(rows(1, number)[0])
    assert (buffer.size, buffer.pointer) == (3, 1)
    assert numbers(buffer.sample_all()) == [3, 1, 2]
    row_ids = buffer.sample_all()["row_id"].tolist()
    assert row_ids == [3, 1, 2] if kind.shards < 2 else len(set(row_ids)) == 3


@pytest.mark.parametrize(("before", "n"), [(0, 10), (0, 11), (3, 25), (9, 10), (10, 1)])
def test_a_batch_wraps_around_and_of_too_many_rows_the_last_ones_stay(make_buffer, before, n):
    buffer = make_buffer(10)
    if before:
        buffer.add_batch(rows(before))
    buffer.add_batch(rows(n, before))
    total = before + n
    assert (buffer.size, buffer.pointer) == (min(total, 10), total % 10)
    expected = {number % 10: number for number in range(max(0, total - 10), total)}
    assert numbers(buffer.sample_all()) == [expected[slot] for slot in sorted(expected)]


def test_a_random_batch_is_uniform_and_with_replacement(make_buffer):
    buffer = filled(make_buffer, 8, 8)
    counts = torch.bincount(buffer.sample_batch(16_000)["action"], minlength=8)
    # 16,000 draws over 8 rows: mean 2,000, standard deviation 42; six of them either way.
    assert ((counts - 2000).abs() < 252).all(), counts
    assert len(numbers(buffer.sample_random(20))) == 20


def test_random_batches_differ(make_buffer):
    buffer = filled(make_buffer, 1000, 1000)
    assert numbers(buffer.sample_batch(50)) != numbers(buffer.sample_batch(50))


def test_only_the_fields_that_are_asked_for_come(make_buffer, kind):
    buffer = filled(make_buffer, 6, 10)
    batch = buffer.sample_by_index_fields([5, 1], fields=["action", "next.obs"])
    assert isinstance(batch, TensorDict)
    assert set(batch.keys(include_nested=True, leaves_only=True)) == {"action", ("next", "obs")}
    assert batch["action"].tolist() == [5, 1]
    assert buffer.sample_by_index_fields([5], fields=["row_id"])["row_id"].tolist() == kind.row_ids([5])


def test_results_own_their_memory(make_buffer):
    buffer = filled(make_buffer, 4, 4)
    taken = [buffer.sample_by_index([0, 1]), buffer.sample_all(), next(iter(buffer.create_epoch_iterator(4)))]
    before = [batch.clone() for batch in taken]
    buffer.add_batch(rows(4, 100))
    assert all((batch == copy).all() for batch, copy in zip(taken, before, strict=True))
    for batch in taken:
        batch["obs"].zero_()  # It may be written, too.
    assert numbers(buffer.sample_all()) == [100, 101, 102, 103]


def test_what_was_added_is_copied(make_buffer):
    buffer, batch = make_buffer(4), rows(4)
    buffer.add_batch(batch)
    batch["obs"].zero_()
    assert numbers(buffer.sample_all()) == [0, 1, 2, 3]


# -- epochs -----------------------------------------------------------------------------------------------------------------------------------


def test_an_epoch_yields_every_row_once_in_slot_order(make_buffer):
    buffer = filled(make_buffer, 13, 10)
    batches = list(buffer.create_epoch_iterator(4))
    assert [batch.batch_size[0] for batch in batches] == [4, 4, 2]
    assert all_numbers(batches) == [10, 11, 12, 3, 4, 5, 6, 7, 8, 9]


def test_n_epochs_yield_every_row_n_times(make_buffer):
    seen = all_numbers(filled(make_buffer, 7, 10).create_epoch_iterator(3, n_epochs=4))
    assert seen == list(range(7)) * 4


def test_a_shuffled_epoch_yields_every_row_once_in_another_order_each_time(make_buffer):
    buffer = filled(make_buffer, 100, 100)
    seen = all_numbers(buffer.create_epoch_iterator(9, 2, shuffle=True))
    first, second = seen[:100], seen[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != list(range(100))


def test_a_seed_makes_shuffled_epochs_the_same_again(make_buffer):
    buffer = filled(make_buffer, 50, 100)

    def order(seed):
        return all_numbers(buffer.create_epoch_iterator(8, 2, shuffle=True, seed=seed))

    assert order(0) == order(0) != order(1)


def test_drop_last_leaves_out_the_partial_batch(make_buffer):
    batches = list(filled(make_buffer, 10, 10).create_epoch_iterator(4, 2, drop_last=True))
    assert [numbers(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_an_epoch_larger_than_the_table_is_one_batch(make_buffer):
    assert [numbers(batch) for batch in filled(make_buffer, 3, 10).create_epoch_iterator(100)] == [[0, 1, 2]]


def test_an_epoch_of_some_fields_brings_those_alone(make_buffer):
    (batch,) = filled(make_buffer, 3, 10).create_epoch_iterator(3, fields=["action"])
    assert set(batch.keys()) == {"action"}


def test_an_epoch_covers_the_rows_that_were_there_when_it_was_made(make_buffer):
    buffer = filled(make_buffer, 4, 10)
    iterator = buffer.create_epoch_iterator(2, 2)
    buffer.add_batch(rows(4, 4))
    assert all_numbers(iterator) == [0, 1, 2, 3] * 2


def test_two_epochs_run_side_by_side(make_buffer):
    buffer = filled(make_buffer, 4, 10)
    pairs = zip(buffer.create_epoch_iterator(1), buffer.create_epoch_iterator(1), strict=True)
    assert [numbers(a) + numbers(b) for a, b in pairs] == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_next_batches_come_from_the_current_epoch_iterator_until_it_ends(make_buffer):
    buffer = filled(make_buffer, 5, 10)
    buffer.create_epoch_iterator(2)
    assert [numbers(buffer.get_next_batch(2)) for _ in range(3)] == [[0, 1], [2, 3], [4]]
    for _ in range(2):
        with pytest.raises(StopIteration):
            buffer.get_next_batch(2)


def test_next_batches_are_random_without_an_iterator(make_buffer):
    buffer = filled(make_buffer, 5, 10)
    assert len(numbers(buffer.get_next_batch(30))) == 30


def test_the_number_of_batches_is_rounded_up(make_buffer):
    buffer = filled(make_buffer, 10, 10)
    assert [buffer.calculate_num_batches(n) for n in (1, 3, 5, 10, 11)] == [10, 4, 2, 1, 1]
    assert make_buffer(3).calculate_num_batches(2) == 0


def test_steps_of_epochs_come_with_an_iterator(make_buffer):
    buffer = filled(make_buffer, 10, 10)
    steps = buffer.get_steps_and_iterator(n_epochs=3, max_iter=0, batch_size=4)
    assert steps == 9
    assert all_numbers(buffer.get_next_batch(4) for _ in range(steps)) == list(range(10)) * 3
    with pytest.raises(StopIteration):
        buffer.get_next_batch(4)


def test_steps_without_epochs_are_max_iter_and_batches_are_random(make_buffer):
    buffer = filled(make_buffer, 10, 10)
    buffer.create_epoch_iterator(4)
    assert buffer.get_steps_and_iterator(n_epochs=0, max_iter=7, batch_size=4) == 7
    assert len(numbers(buffer.get_next_batch(64))) == 64


# -- reset, save, load ------------------------------------------------------------------------------------------------------------------------


def test_reset_forgets_rows_schema_and_iterator(make_buffer, kind):
    buffer = filled(make_buffer, 13, 10)
    buffer.create_epoch_iterator(4)
    buffer.reset()
    assert (buffer.size, buffer.pointer, buffer.buffer_size) == (0, 0, 10)
    buffer.add_batch(TensorDict({"other": torch.arange(3)}, [3]))
    batch = buffer.get_next_batch(8)
    assert set(batch.keys()) == {"other", "index", "row_id"}
    assert set(batch["row_id"].tolist()).isdisjoint(kind.row_ids(range(13)))  # An id is given once.
    assert kind.shards > 1 or (batch["row_id"] >= 13).all()


@pytest.mark.parametrize("buffer_size", [3, 25])
def test_reset_takes_another_capacity(make_buffer, buffer_size):
    buffer = filled(make_buffer, 13, 10)
    buffer.reset(buffer_size)
    assert (buffer.size, buffer.pointer, buffer.buffer_size) == (0, 0, buffer_size)
    buffer.add_batch(rows(30))
    assert (buffer.size, buffer.pointer) == (buffer_size, 30 % buffer_size)


def test_save_writes_metadata_and_load_goes_back_to_it(make_buffer, tmp_path):
    buffer = filled(make_buffer, 4, 10)
    buffer.save(tmp_path / "folder" / "buffer")
    metadata = json.loads((tmp_path / "folder" / "buffer.metadata").read_text())
    assert (metadata["buffer_size"], metadata["data_size"], metadata["pointer"]) == (10, 4, 4)
    buffer.add_batch(rows(3, 4))
    buffer.load(tmp_path / "folder" / "buffer")
    assert (buffer.buffer_size, buffer.size, buffer.pointer) == (10, 4, 4)
    assert numbers(buffer.sample_all()) == [0, 1, 2, 3]
    buffer.add_batch(rows(1, 90))
    assert numbers(buffer.sample_all()) == [0, 1, 2, 3, 90]


def test_load_of_an_empty_buffer_takes_its_capacity(make_buffer, tmp_path):
    make_buffer(25).save(tmp_path / "empty")
    buffer = make_buffer(10)
    buffer.load(tmp_path / "empty")
    assert (buffer.buffer_size, buffer.size, buffer.pointer) == (25, 0, 0)


# -- any TensorDict ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back_bit_for_bit(make_buffer, dtype):
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (5, 3 * dtype.itemsize), dtype=torch.uint8)
    column = raw.view(dtype) if dtype is not torch.bool else raw.bool()
    buffer = make_buffer(8)
    buffer.add_batch(TensorDict({"x": column}, [5]))
    for batch in (buffer.sample_all(), buffer.sample_by_index(range(5)), next(buffer.create_epoch_iterator(5))):
        assert batch["x"].dtype is dtype
        assert torch.equal(batch["x"].view(torch.uint8), column.view(torch.uint8))


def test_scalar_zero_sized_and_deeply_nested_fields(make_buffer):
    batch = TensorDict({"a": {"b": {"c": torch.arange(4)}, "empty": torch.zeros(4, 0, 3)}, "scalar": torch.rand(4)}, [4])
    buffer = make_buffer(4)
    buffer.add_batch(batch)
    assert (buffer.sample_all().exclude("index", "row_id") == batch).all()
    assert buffer.sample_by_index([1, 3])["a", "empty"].shape == (2, 0, 3)


def test_a_table_of_zero_sized_fields_alone(make_buffer):
    buffer = make_buffer(4)
    buffer.add_batch(TensorDict({"nothing": torch.zeros(3, 0)}, [3]))
    assert buffer.sample_all()["nothing"].shape == (3, 0)


def test_views_expanded_and_gradient_tensors_can_be_added(make_buffer):
    buffer = make_buffer(8)
    transposed, expanded = torch.arange(12.0).view(3, 4).T, torch.tensor([[7.0]]).expand(4, 5)
    gradient = torch.ones(4, requires_grad=True) * 2
    buffer.add_batch(
        TensorDict(
            {"transposed": transposed, "expanded": expanded, "gradient": gradient, "conj": torch.view_as_complex(torch.rand(4, 2)).conj()}, [4]
        )
    )
    batch = buffer.sample_by_index(range(4))
    assert torch.equal(batch["transposed"], transposed)
    assert torch.equal(batch["expanded"], expanded)
    assert torch.equal(batch["gradient"], gradient.detach())
    assert not batch["gradient"].requires_grad


@pytest.mark.parametrize("n", [1, 5])
def test_columns_of_numpy_with_a_new_axis_can_be_added(make_buffer, n):
    buffer = make_buffer(8)
    column = torch.from_numpy(np.arange(n, dtype=np.float32)[:, None])  # Its last stride is 0.
    buffer.add_batch(TensorDict({"x": column}, [n]))
    buffer.add(TensorDict({"x": column[0]}))
    assert buffer.sample_all()["x"].tolist() == [*column.tolist(), [0.0]]


def test_a_lazy_stack_can_be_added(make_buffer):
    buffer = make_buffer(8)
    buffer.add_batch(LazyStackedTensorDict(*rows(3).unbind(0), stack_dim=0))
    assert numbers(buffer.sample_all()) == [0, 1, 2]


def test_rows_that_are_batches_themselves_keep_their_batch_size(make_buffer):
    segments = TensorDict({"obs": torch.rand(6, 5, 2), "done": torch.zeros(6, 5, dtype=torch.bool)}, [6, 5])
    buffer = make_buffer(8)
    buffer.add_batch(segments[:5])
    buffer.add(segments[5])
    for batch in (buffer.sample_all(), buffer.sample_by_index(range(6))):
        assert batch.batch_size == batch["index"].shape == torch.Size([6, 5])
        assert (batch.exclude("index", "row_id") == segments).all()


# -- devices, sizes, threads ------------------------------------------------------------------------------------------------------------------


def test_batches_go_to_the_training_device(make_buffer):
    buffer = make_buffer(10, device="meta")
    buffer.add_batch(rows(6))
    for batch in (
        buffer.sample_batch(3),
        buffer.sample_all(),
        buffer.sample_by_index([0]),
        buffer.get_next_batch(2),
        next(buffer.create_epoch_iterator(2)),
    ):
        assert batch.device == torch.device("meta")
        assert {leaf.device.type for leaf in batch.values(include_nested=True, leaves_only=True)} == {"meta"}


def test_a_batch_larger_than_one_message_comes_back_whole(make_buffer):
    for n, width in ((40, 1 << 20), (10, 20 << 20)):  # Rows of 1 MiB, and then rows of 20 MiB, each larger than a block.
        big = TensorDict({"x": torch.arange(n, dtype=torch.uint8).unsqueeze(1).repeat(1, width), "n": torch.arange(n)}, [n])
        buffer = make_buffer(n)
        buffer.add_batch(big[:3])
        buffer.add_batch(big[3:])
        assert torch.equal(buffer.sample_all()["x"], big["x"])
        batch = buffer.sample_batch(10)
        assert torch.equal(batch["x"][:, 0].long(), batch["n"])
        assert torch.equal(batch["x"], batch["x"][:, :1].expand(-1, width))
        size = 2 * n // 5
        assert [b["n"].tolist() for b in buffer.create_epoch_iterator(size)] == [
            list(range(n))[first : first + size] for first in (0, size, 2 * size)
        ]
        buffer.close()
        del big


def test_readers_beside_writers_see_whole_rows(make_buffer):
    buffer = make_buffer(50)
    buffer.add_batch(rows(50))
    failures: list[BaseException] = []

    def guarded(step):
        try:
            for turn in range(60):
                step(turn)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test below shows it.
            failures.append(error)

    steps = [
        lambda turn: buffer.add_batch(rows(7, 50 + 7 * turn)),
        lambda turn: buffer.add(rows(1, 10_000 + turn)[0]),
        lambda turn: numbers(buffer.sample_batch(40)),
        lambda turn: numbers(buffer.sample_all()),
        lambda turn: [numbers(batch) for batch in buffer.create_epoch_iterator(13, shuffle=True)],
    ]
    threads = [threading.Thread(target=guarded, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert buffer.state().write_count == 50 + 60 * 8


@pytest.mark.parametrize("read", ["sample_batch", "sample_random"])
def test_a_batch_may_wait_for_the_first_row(make_buffer, read):
    buffer = make_buffer(10)
    adding = threading.Timer(0.3, lambda: buffer.add_batch(rows(1, 7)))
    adding.start()
    assert numbers(getattr(buffer, read)(3, wait=True)) == [7, 7, 7]
    adding.join()
    with pytest.raises(InvalidArgumentError, match="wait"):
        buffer.sample_batch(3, wait="long")
