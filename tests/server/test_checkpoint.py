"""Checkpoints: all rows of one moment, in a directory that is whole or not there, and back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from pathlib import Path

import pytest

from children import completed
from conftest import files_under, numbers, rows
from tdreplay.errors import CorruptDataError, FailedPreconditionError, InvalidArgumentError, TableChangedError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore, table_of
from tdreplay_server.checkpoints.verify import verified

LOCAL = "127.0.0.1:0"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay-server", *arguments)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory whose table has the rows 17 to 26, and a checkpoint 'one' of the rows 10 to 19."""
    with (
        ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=10)) as server,
        RemoteReplayBuffer(server.address) as buffer,
    ):
        buffer.add_batch(rows(20))
        made = buffer.checkpoint("one")
        assert (made.rows, made.write_count, made.bytes) == (10, 20, 10 * (8 + 1 + 12 + 12))
        assert made.path == str(tmp_path / "data/checkpoints/default/one")
        buffer.add_batch(rows(7, 20))
    return tmp_path / "data"


@pytest.fixture
def one(data: Path) -> Path:
    return data / "checkpoints/default/one"


def stored(data: Path, table: str = "default") -> tuple[list[int], list[int]]:
    """The numbers of all rows, and their ids, by id."""
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=data)) as server, RemoteReplayBuffer(server.address, table=table) as buffer:
        batch = buffer.sample_all()
        batch = batch[batch["row_id"].argsort()]
        return numbers(batch), batch["row_id"].tolist()


def test_a_restored_table_has_the_rows_of_the_checkpoints_moment(one, tmp_path):
    ring = restore(one, tmp_path / "new", "default")
    assert (ring.buffer_size, ring.size, ring.write_count) == (10, 10, 20)
    assert stored(tmp_path / "new") == (list(range(10, 20)), list(range(10, 20)))


@pytest.mark.parametrize(("buffer_size", "kept"), [(4, 4), (10, 10), (13, 10), (1000, 10)])
def test_a_checkpoint_fits_tables_of_every_size(one, tmp_path, buffer_size, kept):
    restore(one, tmp_path / "new", "other", buffer_size=buffer_size)
    assert stored(tmp_path / "new", "other") == (list(range(20 - kept, 20)), list(range(20 - kept, 20)))


@pytest.mark.parametrize("buffer_size", [3, 10, 11, 64])
def test_a_table_is_resized_with_its_newest_rows(data, buffer_size):
    kept = min(buffer_size, 10)
    assert resize(data, "default", buffer_size).buffer_size == buffer_size
    assert stored(data) == (list(range(27 - kept, 27)), list(range(27 - kept, 27)))


def test_a_table_that_is_there_is_replaced_only_when_that_is_asked_for(data, one):
    with pytest.raises(FailedPreconditionError, match="--replace"):
        restore(one, data, "default")
    assert stored(data)[0] == list(range(17, 27))
    restore(one, data, "default", replace=True)
    assert stored(data)[0] == list(range(10, 20))


def test_a_checkpoint_of_the_same_name_is_replaced(data, one):
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=data)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.checkpoint("one")
        assert [path.name for path in one.parent.iterdir()] == ["one"]
    assert "ids [17, 27)" in "".join(verified(one))


def test_a_table_without_rows_has_a_checkpoint_too(tmp_path):
    with ReplayBuffer("cpu", "cpu", 5, directory=tmp_path / "live") as buffer:
        made = buffer.checkpoint("empty")
    restore(Path(made.path), tmp_path / "data", "default")
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data")) as server, RemoteReplayBuffer(server.address) as buffer:
        assert (buffer.size, buffer.buffer_size) == (0, 5)
        buffer.add_batch(rows(2))


@pytest.mark.parametrize("name", ["", "..", "a/b", ".new-x", "ä", "x" * 65])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
    with ReplayBuffer("cpu", "cpu", 5, directory=tmp_path / "live") as buffer, pytest.raises(InvalidArgumentError, match="a name must be"):
        buffer.checkpoint(name)


def test_progress_is_told_and_can_end_it(tmp_path):
    with ReplayBuffer("cpu", "cpu", 500_000, directory=tmp_path / "live") as buffer:
        buffer.add_batch(rows(500_000))
        told: list[tuple[int, int]] = []
        made = buffer.checkpoint("one", progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (made.bytes, made.bytes)
        assert [done for done, _ in told] == sorted({done for done, _ in told})

        def refuse(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            buffer.checkpoint("two", progress=refuse)
        assert [path.name for path in (tmp_path / "live/checkpoints").iterdir()] == ["one"]
        buffer.add_batch(rows(10))


def test_a_reset_ends_a_checkpoint(tmp_path):
    with ReplayBuffer("cpu", "cpu", 500_000, directory=tmp_path / "live") as buffer:
        buffer.add_batch(rows(500_000))
        with pytest.raises(TableChangedError):
            buffer.checkpoint("one", progress=lambda done, total: buffer.reset())
        assert list((tmp_path / "live/checkpoints").iterdir()) == []


def test_there_is_one_checkpoint_of_a_table_at_a_time(tmp_path):
    with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "live") as buffer:
        buffer.add_batch(rows(10))
        refused: list[Exception] = []

        def second(done: int, total: int) -> None:
            with pytest.raises(FailedPreconditionError, match="another checkpoint") as raised:
                buffer.checkpoint("two")
            refused.append(raised.value)

        buffer.checkpoint("one", progress=second)
        assert refused


def test_rows_that_are_overwritten_during_a_checkpoint_are_in_it(tmp_path):
    """The writer wraps the ring between any two steps of the copy."""
    with ReplayBuffer("cpu", "cpu", 400_000, directory=tmp_path / "live") as buffer:
        buffer.add_batch(rows(400_000))
        steps = []

        def overwrite(done: int, total: int) -> None:
            steps.append(done)
            for start in range(0, 450_000, 150_000):
                buffer.add_batch(rows(150_000, 1_000_000 + start))

        made = buffer.checkpoint("one", progress=overwrite)
        assert len(steps) >= 1
    restore(Path(made.path), tmp_path / "data", "default")
    assert stored(tmp_path / "data") == (list(range(400_000)), list(range(400_000)))


def test_writers_go_on_during_a_checkpoint(tmp_path):
    with ReplayBuffer("cpu", "cpu", 300_000, directory=tmp_path / "live") as buffer:
        buffer.add_batch(rows(300_000))
        stop, written = threading.Event(), []

        def write() -> None:
            while not stop.is_set():
                buffer.add_batch(rows(5_000, 300_000 + 5_000 * len(written)))
                written.append(buffer.state().write_count)

        writer = threading.Thread(target=write)
        writer.start()
        made = buffer.checkpoint("one")
        during = [count for count in written if count > made.write_count]
        stop.set()
        writer.join()
        assert during
    restore(Path(made.path), tmp_path / "data", "default")
    assert stored(tmp_path / "data")[0] == list(range(made.write_count - 300_000, made.write_count))


# -- what it is made of -----------------------------------------------------------------------------------------------------------------------


def test_the_manifest_lists_every_file_with_its_sha256(one):
    manifest = json.loads((one / "manifest.json").read_text())
    listed = {file["name"]: (file["size"], file["sha256"]) for file in manifest["files"]}
    found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files_under(one).items() if not name.startswith("manifest")}
    assert listed == found
    assert (one / "manifest.json.sha256").read_text().split() == [hashlib.sha256((one / "manifest.json").read_bytes()).hexdigest(), "manifest.json"]


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "flipped"])
def test_a_changed_file_is_reported_and_nothing_is_restored(one, tmp_path, change):
    for path in sorted(one.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        if change != "missing":
            path.write_bytes({"cut": whole[:-1], "longer": whole + b" ", "flipped": bytes([whole[0] ^ 1]) + whole[1:]}[change])
        with pytest.raises(CorruptDataError, match=path.name):
            list(verified(one))
        with pytest.raises(CorruptDataError):
            restore(one, tmp_path / "new", "default")
        assert not (tmp_path / "new/tables").exists() or not list((tmp_path / "new/tables").iterdir())
        path.write_bytes(whole)
    restore(one, tmp_path / "new", "default")


def test_a_newer_checkpoint_is_refused(one):
    path = one / "manifest.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 4'))
    (one / "manifest.json.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  manifest.json\n")
    with pytest.raises(FailedPreconditionError, match="format 4, and this version knows 3"):
        list(verified(one))


# -- the commands -----------------------------------------------------------------------------------------------------------------------------


def test_verify_says_what_a_data_directory_holds(data):
    before = files_under(data)
    ended = run("verify", data)
    assert ended.returncode == 0, ended.stderr
    assert "table default: 10 rows, ids [17, 27), buffer_size 10" in ended.stdout
    assert "checkpoint default/one: 10 rows, ids [10, 20), buffer_size 10" in ended.stdout
    assert files_under(data) == before


def test_restore_and_resize_are_commands(one, tmp_path):
    ended = run("restore", one, tmp_path / "new", "--table", "t")
    assert (ended.returncode, ended.stdout) == (0, "table t: 10 rows, ids [10, 20), buffer_size 10\n")
    ended = run("resize", tmp_path / "new", "--table", "t", "--buffer-size", "6")
    assert (ended.returncode, ended.stdout) == (0, "table t: 6 rows, ids [14, 20), buffer_size 6\n")
    assert stored(tmp_path / "new", "t")[0] == list(range(14, 20))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "/nowhere"], "/nowhere is neither a data directory, nor a table, nor a checkpoint"),
        (["restore", "/nowhere", "{new}"], "/nowhere is not a checkpoint"),
        (["restore", "{one}", "{data}"], "is there already"),
        (["resize", "{data}", "--table", "nope", "--buffer-size", "3"], "there is no table 'nope'"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(arguments, words, data, one, tmp_path):
    ended = run(*(argument.format(data=data, one=one, new=tmp_path / "new") for argument in arguments))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr


def test_commands_keep_off_a_directory_that_a_server_has(data, one):
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=data)):
        for command in (["verify", data], ["resize", data, "--buffer-size", "3"], ["restore", one, data, "--replace"]):
            ended = run(*command)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert "in use by process" in ended.stderr


# -- which table ------------------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_back_into_the_table_that_it_was_made_of(tmp_path):
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=10)) as server:
        with RemoteReplayBuffer(server.address, table="mine", buffer_size=20) as buffer:
            buffer.add_batch(rows(5))
            made = Path(buffer.checkpoint("one").path)
    moved = made.rename(tmp_path / "elsewhere")
    assert run("restore", moved, tmp_path / "new").stdout.startswith("table mine: 5 rows")
    assert stored(tmp_path / "new", "mine") == (list(range(5)), list(range(5)))
    assert run("restore", moved, tmp_path / "new", "--table", "other").stdout.startswith("table other: 5 rows")


@pytest.mark.parametrize(("folder", "table"), [("checkpoints/old/one", "old"), ("checkpoints/one", "default"), ("somewhere", "default")])
def test_a_checkpoint_of_an_older_version_goes_where_its_folder_says(folder, table, one, tmp_path):
    target = tmp_path / folder
    target.parent.mkdir(parents=True, exist_ok=True)
    one.rename(target)
    with_entries(target, table=None)
    assert table_of(target) == table


def with_entries(checkpoint: Path, **entries: object) -> None:
    """Gives the manifest other entries, and a SHA-256 that fits. An entry that is None is not there."""
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | entries
    (checkpoint / "manifest.json").write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))
    digest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    (checkpoint / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


def test_a_manifest_cannot_name_a_path_as_its_table(one):
    with_entries(one, table="../../other")
    with pytest.raises(CorruptDataError, match="table"):
        table_of(one)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("format", "1"),
        ("created", 7),
        ("buffer_size", 0),
        ("buffer_size", 9),
        ("rows", True),
        ("rows", -1),
        ("write_count", 10.5),
        ("write_count", 1 << 63),
        ("insert_count", "many"),
        ("schema", {"fields": [{"name": "x", "dtype": "complex7", "shape": []}], "row_shape": []}),
        ("schema", 7),
        ("files", [{"name": "field_000.rows", "size": "80", "sha256": ""}]),
        ("files", None),
    ],
)
def test_a_manifest_with_an_entry_that_cannot_be_is_refused_by_name(one, tmp_path, entry, value):
    with_entries(one, **{entry: value})
    with pytest.raises(CorruptDataError, match=f"{one}/manifest.json"):
        restore(one, tmp_path / "new", "default")
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_before_the_insert_count_is_read(one, tmp_path):
    with_entries(one, insert_count=None, table=None)
    ring = restore(one, tmp_path / "new", "default")
    assert (ring.size, ring.write_count, ring.insert_count) == (10, 20, 20)


@pytest.mark.parametrize("content", ["[[1]]", "{", '[["w", 0, 1, 2, 3, "4"]]'])
def test_acknowledged_inserts_that_cannot_be_are_refused_by_name(one, tmp_path, content):
    (one / "acknowledged.json").write_text(content)
    files = json.loads((one / "manifest.json").read_text())["files"]
    changed = {"name": "acknowledged.json", "size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    with_entries(one, files=[changed if file["name"] == "acknowledged.json" else file for file in files])
    with pytest.raises(CorruptDataError, match=r"acknowledged\.json"):
        restore(one, tmp_path / "new", "default")
