"""Tables to files and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from exported_rows import all_bytes, any_bits, bytes_of, of_every_dtype
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.errors import EmptyTableError, FailedPreconditionError, InvalidArgumentError, RateLimitedError, SchemaError, TableChangedError
from tdreplay.fields import DTYPES
from tdreplay_client import Prioritized, RemoteReplayBuffer, Sequences, Transitions
from tdreplay_client.files import export_table, import_table, read_manifest
from tdreplay_server import ReplayBuffer
from trajectory_play import TRAJECTORIES
from trajectory_rows import Chronicle, Players

FORMATS = ("safetensors", "npz", "parquet")


@pytest.fixture
def buffers() -> Iterator[Any]:
    """Makes buffers in process."""
    with ExitStack() as opened:
        yield lambda buffer_size, **options: opened.enter_context(ReplayBuffer("cpu", "cpu", buffer_size, **options))


# -- round trips --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_dtype_comes_back_bit_for_bit_with_its_priorities(address, table, tmp_path, file_format):
    with (
        RemoteReplayBuffer(address, table=table, buffer_size=90, sampler="prioritized") as one,
        RemoteReplayBuffer(address, table=f"{table}-again", buffer_size=90, sampler="prioritized") as other,
    ):
        one.add_batch(of_every_dtype(100), priorities=torch.rand(100))
        seen: list[tuple[int, int]] = []
        made = export_table(one, tmp_path / "made", file_format=file_format, rows_per_shard=40, progress=lambda *told: seen.append(told))
        assert (made.rows, made.shards, made.first_row_id, made.end_row_id, made.overwritten) == (90, 3, 10, 100, 0)
        assert seen[-1] == (90, 90)
        assert import_table(other, tmp_path / "made", progress=lambda *told: seen.append(told)).rows == 90
        assert seen[-1] == (90, 90)
        assert all_bytes(other) == all_bytes(one)
        assert len(one) == 90


names = st.sampled_from(["obs", "next.obs", "next.reward", "a b", "é", "deep.er.still", "priority", "file", "/up", "x/y"])
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_schema_comes_back(tmp_path_factory, data):
    fields = data.draw(st.dictionaries(names, st.tuples(st.sampled_from([*DTYPES]), shapes), min_size=1, max_size=5))
    row_shape, count = data.draw(st.lists(st.integers(1, 3), max_size=2).map(tuple)), data.draw(st.integers(1, 20))
    size, shard, generator = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 9)), torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    batch = TensorDict({}, [count, *row_shape], names=data.draw(st.sampled_from([None, ["n", *"ab"[: len(row_shape)]]])))
    for name, (dtype, shape) in fields.items():
        batch.set(
            tuple(name.split(".")) if ".." not in name else name.replace(".", "_"), any_bits(DTYPES[dtype], (count, *row_shape, *shape), generator)
        )
    path = tmp_path_factory.mktemp("made")
    with ReplayBuffer("cpu", "cpu", size) as one, ReplayBuffer("cpu", "cpu", size) as other:
        one.add_batch(batch)
        made = export_table(one, path, file_format=data.draw(st.sampled_from(FORMATS)), rows_per_shard=shard)
        assert made.rows == min(count, size)
        assert import_table(other, path).rows == made.rows
        assert other.describe().schema == one.describe().schema
        assert all_bytes(other) == all_bytes(one)
        assert other.sample_all().names == one.sample_all().names


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_table_of_trajectories_has_the_same_episodes_and_windows(buffers, tmp_path, file_format):
    one, other = (buffers(150, trajectories=TRAJECTORIES) for _ in range(2))
    chronicle, players = Chronicle(150), Players(7, 4)
    for _ in range(10):
        one.add_batch(chronicle.insert(players.rows(40)))
    export_table(one, tmp_path, file_format=file_format, rows_per_shard=33)
    import_table(other, tmp_path)
    assert all_bytes(other) == all_bytes(one)  # Final observations and the kinds of steps, too.
    found, wanted = ([(e.episode_id, e.first_step, e.steps, e.ended, e.has_final) for e in buffer.episodes()] for buffer in (other, one))
    assert found == wanted
    assert len(found) > 10
    for view in (Transitions(n_step=3, frame_stack={"obs": 4}), Sequences(length=5, burn_in=2)):
        windows = [bytes_of(torch.cat(list(buffer.epochs(64, view=view)))) for buffer in (other, one)]
        assert windows[0] == windows[1]
    assert other.episode(found[3][0])["obs"].equal(one.episode(found[3][0])["obs"])


def test_rows_go_from_one_format_to_another(buffers, tmp_path):
    first = buffers(50)
    first.add_batch(of_every_dtype(50))
    at = first
    for file_format in FORMATS:
        export_table(at, tmp_path / file_format, file_format=file_format)
        at = buffers(50)
        import_table(at, tmp_path / file_format)
    assert all_bytes(at) == all_bytes(first)


# -- what an export is --------------------------------------------------------------------------------------------------------------------------


def test_the_files_are_what_other_tools_read(buffers, tmp_path):
    import pyarrow.parquet
    from safetensors.torch import load_file

    buffer = buffers(20, sampler=Prioritized(alpha=0.5))
    buffer.add_batch(rows(30), priorities=torch.arange(30.0))
    for file_format in FORMATS:
        export_table(buffer, tmp_path / file_format, file_format=file_format)
    tensors = load_file(tmp_path / "safetensors/rows-00000.safetensors")
    arrays = np.load(tmp_path / "npz/rows-00000.npz", allow_pickle=False)
    frame = pyarrow.parquet.read_table(tmp_path / "parquet/rows-00000.parquet").to_pydict()
    wanted = [*range(10, 30)]
    for found in (tensors, arrays, frame):
        assert {*found} == {"obs", "action", "done", "next.obs", "index", "row_id", "priority"}
        assert np.asarray(found["action"]).tolist() == np.asarray(found["row_id"]).tolist() == wanted
        assert np.asarray(found["priority"]).tolist() == wanted
        assert np.asarray(found["next.obs"]).tolist() == [[number + 1.0] * 3 for number in wanted]
        assert np.asarray(found["index"]).tolist() == [number % 20 for number in wanted]


def test_the_manifest_says_what_there_is(buffers, tmp_path):
    buffer = buffers(20, sampler=Prioritized(alpha=0.5))
    buffer.add_batch(rows(30))
    export_table(buffer, tmp_path, rows_per_shard=15, newest=18)
    manifest, described = read_manifest(tmp_path), buffer.describe()
    assert (manifest.rows, manifest.first_row_id, manifest.end_row_id) == (18, 12, 30)
    assert (manifest.config, manifest.schema, manifest.has_priorities) == (described.config, described.schema, True)
    assert [(shard.file, shard.rows) for shard in manifest.shards] == [("rows-00000.safetensors", 15), ("rows-00001.safetensors", 3)]
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *(shard.file for shard in manifest.shards)}


def test_fields_are_chosen_and_a_table_of_trajectories_keeps_what_it_needs(buffers, tmp_path):
    plain, steps = buffers(20), buffers(50, trajectories=TRAJECTORIES)
    plain.add_batch(rows(20))
    steps.add_batch(Chronicle(50).insert(Players(1, 2).rows(50)))
    export_table(plain, tmp_path / "plain", fields=["next", "action"])
    export_table(steps, tmp_path / "steps", fields=["reward"])
    assert {field.name for field in read_manifest(tmp_path / "plain").schema.fields} == {"next.obs", "action"}
    again = buffers(50, trajectories=TRAJECTORIES)
    import_table(again, tmp_path / "steps")
    fields = [field.name for field in read_manifest(tmp_path / "steps").schema.fields]
    assert "action" not in fields
    assert all_bytes(again) == all_bytes(steps, fields)


def test_a_queue_keeps_its_rows(buffers, tmp_path):
    queue = buffers(20, sampler="fifo", max_times_sampled=1)
    queue.add_batch(rows(10))
    numbers(queue.sample_batch(4))
    assert export_table(queue, tmp_path).rows == 6
    assert numbers(queue.sample_batch(6)) == [4, 5, 6, 7, 8, 9]


class Overwritten(ReplayBuffer):
    """A buffer to which others write while it is read."""

    meanwhile: Any = staticmethod(lambda: None)

    def sample_by_index_fields(self, *arguments: Any, **options: Any) -> TensorDict:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().sample_by_index_fields(*arguments, **options)


def test_rows_that_are_overwritten_meanwhile_are_left_out_and_counted(tmp_path):
    with Overwritten("cpu", "cpu", 20) as buffer, ReplayBuffer("cpu", "cpu", 20) as other:
        buffer.add_batch(rows(20))
        buffer.meanwhile = lambda: buffer.add_batch(rows(7, start=20))
        made = export_table(buffer, tmp_path)
        assert (made.rows, made.overwritten, made.first_row_id, made.end_row_id) == (13, 7, 0, 20)
        import_table(other, tmp_path)
        assert numbers(other.sample_all()) == [*range(7, 20)]


def test_of_an_episode_no_step_comes_after_a_gap(tmp_path):
    options = {"trajectories": {"final_fields": ["obs"], "reward": None}}
    with Overwritten("cpu", "cpu", 500, **options) as buffer, ReplayBuffer("cpu", "cpu", 500, **options) as other:

        def write(count: int, writer: Any) -> None:
            ends = torch.zeros(count, dtype=torch.bool)
            writer.extend({"obs": torch.zeros(count, 16 << 10), "terminated": ends, "truncated": ends})  # 64 KiB a row: a part is 127 rows.

        with buffer.trajectory_writer() as long, buffer.trajectory_writer() as short:
            write(300, long)
            write(200, short)

            def wait_for_the_second_part() -> None:
                buffer.meanwhile = lambda: write(200, short)  # The rows up to 200 are gone.

            buffer.meanwhile = wait_for_the_second_part
            made = export_table(buffer, tmp_path)
            first = made.rows - 200
            assert 100 < first < 200
            assert (made.overwritten, made.left_out) == (200 - first, 100)
            import_table(other, tmp_path)
            found = [(episode.episode_id, episode.first_step, episode.steps) for episode in other.episodes()]
            assert found == [(long.episode_ids[0], 0, first), (short.episode_ids[0], 0, 200)]


def test_a_reset_meanwhile_is_an_error_and_leaves_no_export(tmp_path):
    with Overwritten("cpu", "cpu", 20) as buffer:
        buffer.add_batch(rows(20))
        buffer.meanwhile = buffer.reset
        with pytest.raises(TableChangedError, match="reset"):
            export_table(buffer, tmp_path)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(EmptyTableError, match="no row to export"):
            export_table(buffer, tmp_path)


def test_a_folder_with_something_in_it_is_left_alone(buffers, tmp_path):
    buffer = buffers(20)
    buffer.add_batch(rows(20))
    export_table(buffer, tmp_path, rows_per_shard=3)
    with pytest.raises(FailedPreconditionError, match="is not empty"):
        export_table(buffer, tmp_path)
    export_table(buffer, tmp_path, file_format="npz", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "rows-00000.npz"}
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FailedPreconditionError, match=r"notes\.txt"):
        export_table(buffer, tmp_path, overwrite=True)
    assert read_manifest(tmp_path).rows == 20


@pytest.mark.parametrize("options", [{"file_format": "pickle"}, {"rows_per_shard": 0}, {"rows_per_shard": 1 << 40}, {"newest": 0}])
def test_an_argument_that_cannot_be_is_refused(buffers, tmp_path, options):
    buffer = buffers(20)
    buffer.add_batch(rows(20))
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        export_table(buffer, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


# -- imports ------------------------------------------------------------------------------------------------------------------------------------


def test_a_table_with_rows_is_appended_to_only_if_that_is_said(buffers, tmp_path):
    one, other = buffers(20), buffers(25)
    one.add_batch(rows(20))
    export_table(one, tmp_path)
    other.add_batch(rows(10, start=100))
    with pytest.raises(FailedPreconditionError, match="the table has 10 rows"):
        import_table(other, tmp_path)
    import_table(other, tmp_path, append=True)
    assert sorted(numbers(other.sample_all())) == [*range(20), *range(105, 110)]
    with pytest.raises(FailedPreconditionError, match="cannot go on"):
        import_table(other, tmp_path, resume=True)
    with pytest.raises(InvalidArgumentError, match="append and resume"):
        import_table(other, tmp_path, resume=True, append=True)


def test_other_fields_are_refused_before_the_first_row(buffers, tmp_path):
    one, other = buffers(20), buffers(20)
    one.add_batch(rows(20))
    export_table(one, tmp_path, fields=["action"])
    other.add_batch(rows(1))
    with pytest.raises(SchemaError, match="'done': expected BOOL"):
        import_table(other, tmp_path, append=True)
    assert len(other) == 1


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("alone", [True, False])
def test_files_of_others_are_taken(buffers, tmp_path, file_format, alone):
    import pyarrow
    import pyarrow.parquet
    from safetensors.numpy import save_file

    buffer = buffers(100)
    for number in range(1 if alone else 3):
        count = 10 + number
        arrays = {
            "obs": np.arange(count * 3, dtype=np.float32).reshape(count, 3) + number,
            "next.done": np.arange(count) % 2 == 0,
            "big": np.arange(count, dtype=">i4" if file_format == "npz" else "<i4"),
        }
        path = tmp_path / f"part-{number}.{file_format}"
        if file_format == "safetensors":
            save_file(arrays, path)
        elif file_format == "npz":
            np.savez_compressed(path, **arrays)
        else:
            columns = {"obs": list(arrays["obs"]), "next": [{"done": done} for done in arrays["next.done"].tolist()], "big": arrays["big"]}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert import_table(buffer, tmp_path / f"part-0.{file_format}" if alone else tmp_path).rows == (10 if alone else 33)
    batch = buffer.sample_all()
    assert batch["big"][:10].tolist() == [*range(10)]
    assert batch["obs"][:10].equal(torch.arange(30.0).view(10, 3))
    assert batch["next", "done"][:4].tolist() == [True, False, True, False]


def test_a_shard_of_an_export_is_taken_alone(buffers, tmp_path):
    one, other = buffers(20), buffers(20)
    one.add_batch(rows(20))
    export_table(one, tmp_path, rows_per_shard=8)
    import_table(other, tmp_path / "rows-00001.safetensors")
    assert numbers(other.sample_all()) == [*range(8, 16)]


def test_an_export_that_was_not_finished_is_refused(buffers, tmp_path):
    buffer = buffers(20)
    buffer.add_batch(rows(20))
    export_table(buffer, tmp_path)
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.json.part")
    with pytest.raises(FailedPreconditionError, match="was not finished"):
        import_table(buffers(20), tmp_path)
    export_table(buffer, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 20


def test_an_import_that_was_refused_midway_says_how_many_rows_are_stored(address, table, tmp_path):
    queue = {"rate_limiter": {"name": "queue", "max_size": 300}, "sampler": "fifo", "max_times_sampled": 1}
    np.savez(tmp_path / "rows.npz", obs=np.zeros((400, 16 << 10), np.float32))
    with RemoteReplayBuffer(address, table=table, buffer_size=500, timeout=1, **queue) as buffer:
        with pytest.raises(RateLimitedError, match=r"waits for room in the queue.*; of 400 rows at least 2\d\d are stored"):
            import_table(buffer, tmp_path / "rows.npz")


def test_a_table_is_found_again_where_an_import_ended(buffers, tmp_path):
    one = buffers(100)
    one.add_batch(rows(100))
    export_table(one, tmp_path, rows_per_shard=30)
    for there in (0, 1, 30, 45, 100):
        for size in (100, 40):
            other = buffers(size)
            for number in range(there):
                other.add(rows(1, start=number)[0])
            done = import_table(other, tmp_path, resume=True)
            assert (done.rows, done.stored_before) == (100 - there, there)
            assert sorted(numbers(other.sample_all())) == [*range(100 - size, 100)]
    other = buffers(100)
    other.add_batch(rows(20, start=1))
    with pytest.raises(FailedPreconditionError, match="are not those of"):
        import_table(other, tmp_path, resume=True)
