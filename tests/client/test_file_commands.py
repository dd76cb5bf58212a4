"""``tdreplay export`` and ``tdreplay import``; imports that are killed; and the memory that they take."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported_rows import all_bytes, peak_memory

from children import child_of, completed
from conftest import rows
from tdreplay_client import Prioritized, RemoteReplayBuffer
from tdreplay_client.files import export_table, import_table


def run(address: str, *arguments: Any) -> tuple[int, str, str]:
    done = completed("tdreplay", *map(str, arguments), "--address", address)
    return done.returncode, done.stdout, done.stderr


def test_a_table_goes_to_a_folder_and_back(address, table, tmp_path):
    folder, again = tmp_path / "made", f"{table}-again"
    with RemoteReplayBuffer(address, table=table, buffer_size=20, sampler=Prioritized(alpha=0.5)) as buffer:
        buffer.add_batch(rows(30), priorities=torch.arange(30.0))
        status, out, error = run(address, "export", table, folder, "--rows-per-shard", 7, "--fields", "obs,action", "--fields", "next")
        assert (status, error) == (0, "")
        assert out.startswith(f"export {folder}: 20 rows in 3 files, ")
        assert run(address, "import", folder, again, "--create", "--buffer-size", 15) == (0, f"table {again}: 20 rows stored; it has 15\n", "")
        with RemoteReplayBuffer(address, table=again) as other:
            assert other.describe().config.sampler == Prioritized(alpha=0.5)
            found = other.sample_by_index_fields(slice(None), ["action"], priorities=True)
            assert found["action"].tolist() == found["priority"].tolist()
            assert sorted(found["action"].tolist()) == [*range(15, 30)]


def test_what_cannot_be_is_one_line(address, table, tmp_path):
    with RemoteReplayBuffer(address, table=table, buffer_size=20) as buffer:
        buffer.add_batch(rows(20))
    np.savez(tmp_path / "rows.npz", action=np.arange(3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    refused = [
        (("export", "none", tmp_path / "new"), "'none'"),
        (("export", table, tmp_path / "full"), "is not empty"),
        (("export", table, tmp_path / "new", "--format", "csv"), "file_format ('csv')"),
        (("export", table, tmp_path / "new", "--fields", "reward"), "'reward' is not a field"),
        (("import", tmp_path / "rows.npz", table), "'done': expected BOOL"),
        (("import", tmp_path / "rows.npz", f"{table}-new", "--create"), "--create needs --buffer-size"),
        (("import", tmp_path / "rows.npz", table, "--buffer-size", "3"), "--buffer-size needs --create"),
        (("import", tmp_path / "none", table), "is not there"),
    ]
    for arguments, words in refused:
        status, out, error = run(address, *arguments)
        assert (status, out, error.count("\n")) == (1, "", 1), error
        assert words in error


# -- kills --------------------------------------------------------------------------------------------------------------------------------------


def import_in_a_child(address: str, table: str, folder: str, until: int) -> None:
    """Says when the first rows are stored, and stops when `until` are."""

    def tell(done: int, total: int) -> None:
        print("imports", flush=True)
        if done >= until:
            threading.Event().wait()

    with RemoteReplayBuffer(address, table=table) as buffer:
        import_table(buffer, folder, resume=True, progress=tell)
    print("done", flush=True)


def test_an_import_that_is_killed_goes_on_and_stores_each_step_once(address, table, tmp_path):
    """One episode of 64 KiB a step, so that each kill leaves one half of it behind."""
    count, options = 1000, {"buffer_size": 1000, "trajectories": True}
    with RemoteReplayBuffer(address, table=table, **options) as one, RemoteReplayBuffer(address, table=f"{table}-again", **options) as other:
        with one.trajectory_writer() as writer:
            steps = torch.arange(count - 1, dtype=torch.float32)
            ends = {"terminated": steps == count - 2, "truncated": torch.zeros(count - 1, dtype=torch.bool)}
            writer.extend({"obs": steps[:, None].repeat(1, 16 << 10), "reward": steps, **ends}, final=torch.full((1, 16 << 10), -1.0))
        export_table(one, tmp_path, rows_per_shard=300)
        for until in (200, 500, count):  # The first two stand still when they are killed; the last one is at work.
            before = len(other)
            with child_of(import_in_a_child, address, f"{table}-again", str(tmp_path), until) as child:
                assert child.line == "imports"
                other.wait_for(until if until < count else before + 1)
                child.kill()
                child.wait()
            assert before < len(other) <= count
        done = import_table(other, tmp_path, resume=True)
        assert done.stored_before >= 500
        assert done.rows + done.stored_before == count == other.state().insert_count
        assert [(episode.steps, episode.ended, episode.has_final) for episode in other.episodes()] == [(count - 1, "terminated", True)]
        assert all_bytes(other, ["reward", "step", "step_kind", "episode_id"]) == all_bytes(one, ["reward", "step", "step_kind", "episode_id"])


# -- memory -------------------------------------------------------------------------------------------------------------------------------------

IMAGES = 20_000
M_MMAP_THRESHOLD = -3  # From glibc's malloc.h.


def copy_in_a_child(address: str, table: str, folder: str) -> None:
    """Prints the most memory so far after a part of a table was exported, after it was imported, and the same of the whole."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 19)  # What is free again goes back: the test is not about the C library.
    with RemoteReplayBuffer(address, table=table) as one, RemoteReplayBuffer(address, table=f"{table}-again", buffer_size=IMAGES) as other:
        peaks = []
        for newest in (IMAGES // 4, IMAGES):
            path = Path(folder) / str(newest)
            export_table(one, path, rows_per_shard=1000, newest=newest)
            peaks.append(peak_memory())
            import_table(other, path, append=True)
            peaks.append(peak_memory())
        print(*(peak >> 20 for peak in peaks), flush=True)


def test_four_times_as_many_images_take_no_more_memory(address, table, tmp_path):
    """20,000 images of 84 x 84, 141 MB, in shards of 7 MB."""
    with RemoteReplayBuffer(address, table=table, buffer_size=IMAGES) as buffer:
        for start in range(0, IMAGES, 2000):
            buffer.add_batch({"pixels": torch.randint(0, 255, (2000, 84, 84), dtype=torch.uint8), "action": torch.arange(start, start + 2000)})
        with child_of(copy_in_a_child, address, table, str(tmp_path)) as child:
            peaks = [int(word) for word in child.line.split()]
        print(f"at most {peaks} MiB, after 5,000 images were exported, imported, and 20,000 were")
        assert max(peaks[2:]) - peaks[1] < 48
        with RemoteReplayBuffer(address, table=f"{table}-again") as other:
            some = torch.randint(0, IMAGES, (50,))
            found, wanted = other.sample_by_index(some), buffer.sample_by_index((some - IMAGES // 4) % IMAGES)
            assert found["action"].equal(wanted["action"])
            assert found["pixels"].equal(wanted["pixels"])
            other.drop()
        buffer.drop()
