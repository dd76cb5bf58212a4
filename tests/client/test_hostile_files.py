"""Files from anybody: what is not what it says is refused, with a typed error, before its first row, and takes no memory."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from exported_rows import peak_memory

from conftest import rows
from tdreplay.errors import CodecError, CorruptDataError, FailedPreconditionError, SchemaError
from tdreplay_client.files import export_table, import_table
from tdreplay_server import ReplayBuffer

MOST_MEMORY = 64 << 20


@pytest.fixture
def buffer() -> Iterator[ReplayBuffer]:
    """An empty table, which stays empty, in a process that takes no memory for what it refuses."""
    with ReplayBuffer("cpu", "cpu", 1000) as made:
        before = peak_memory(again=True)
        yield made
        assert len(made) == 0
        assert peak_memory() - before < MOST_MEMORY


# -- safetensors --------------------------------------------------------------------------------------------------------------------------------


def tensors(entries: Any, data: bytes = bytes(64)) -> bytes:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(shape: Any, end: Any, dtype: Any = "F32", start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no safetensors file"),
        (b"PK\3\4", "no safetensors file"),
        (struct.pack("<Q", 1 << 63) + bytes(100), "header .* must be at most"),
        (struct.pack("<Q", 200) + bytes(100), "header .* must be at most"),
        (tensors(b"[" * 60000), "not JSON"),
        (tensors([]), "JSON object"),
        (tensors({}), "no fields"),
        (tensors(b'{"a": 1, "a": 2}'), "comes twice"),
        (tensors({"a": entry([4, 4], 64), "b": entry([4], 48, start=32)}), "starts at byte 32"),
        (tensors({"a": entry([4, 4], 64, start=8)}), "must span"),
        (tensors({"a": entry([1 << 40, 1 << 40], 64)}), "shape"),
        (tensors({"a": entry([1 << 40], 1 << 42)}), "it is not whole"),
        (tensors({"a": entry([4, 4], 64)}, bytes(63)), "it is not whole"),
        (tensors({"a": entry([4, 4], 64)}, bytes(65)), "it is not whole"),
        (tensors({"a": entry([], 4), "b": entry([15], 64, start=4)}), "first dimension must be the rows"),
        (tensors({"a": entry([4], 16), "b": entry([12], 64, start=16)}), "first dimension must be the rows"),
        (tensors({"a": entry([16], 64, dtype="OBJ")}), "dtype 'OBJ'"),
        (tensors({"a": entry([64], 64, dtype="BOOL")}, bytes([7] * 64)), "a bool must be 0 or 1"),
    ],
)
def test_a_broken_safetensors_file_is_refused(buffer, tmp_path, data, words):
    (tmp_path / "rows.safetensors").write_bytes(data)
    with pytest.raises(CorruptDataError, match=f"rows.safetensors: .*{words}"):
        import_table(buffer, tmp_path)


# -- npz ----------------------------------------------------------------------------------------------------------------------------------------


class Evil:
    """A pickle that would leave a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def array(shape: Any, data: bytes, descr: str = "|u1") -> bytes:
    """The file of an array whose head may be a lie."""
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def bomb(size: int) -> bytes:
    """Zeros that take a thousandth of their size."""
    return zipped({"a.npy": array("(4,)", bytes(size))})


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", CorruptDataError, "no npz file"),
        (b"PK\5\6" + bytes(17), CorruptDataError, "no npz file"),
        (npz(a=np.arange(4))[:-40], CorruptDataError, "no npz file"),
        (b"PK\5\6" + bytes(8) + struct.pack("<IIH", 1 << 30, 0, 0), CorruptDataError, "list of arrays"),
        (npz(a=np.array([Evil()], object)), CodecError, "objects would be pickles"),
        (npz(a=np.array(["text"])), CodecError, "dtype <U4"),
        (npz(a=np.arange(4).astype("M8[s]")), CodecError, "dtype datetime64"),
        (npz(a=np.zeros((2, 3), order="F")), CodecError, "Fortran"),
        (npz(a=np.zeros(())), CorruptDataError, "first dimension must be the rows"),
        (npz(a=np.zeros(3), b=np.zeros(4)), CorruptDataError, "'b' has 4 rows"),
        (zipped({}), CorruptDataError, "it has 0"),
        (zipped({"a.npy": b"not an array"}), CorruptDataError, "no array of NumPy"),
        (zipped({"a.npy": b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + bytes(100)}), CorruptDataError, "its head .* must be at most"),
        (zipped({"a.npy": array("(" * 4000, b"")}), CorruptDataError, "array 'a'"),
        (zipped({"a.npy": array("(1 << 60,)", b"")}), CorruptDataError, "array 'a'"),
        (zipped({"a.npy": array("(1152921504606846976,)", b"")}), CorruptDataError, "has shape"),
        (zipped({"a.npy": array("(281474976710655,)", b"")}), CorruptDataError, "must have"),
        (zipped({"a.npy": array("(-4,)", bytes(4))}), CorruptDataError, "has shape"),
        (zipped({"a.npy": array("(4,)", bytes([9] * 4), "|b1")}), CorruptDataError, "a bool must be 0 or 1"),
        (bomb(64 << 20), CorruptDataError, "must have .* bytes with its head, and has 6710"),
        (zipped({"a.npy": array("(1, 67108864)", bytes(64 << 20))}), SchemaError, "a row .* must be at most"),
        (zipped({"a.npy": array("(4,)", bytes(4))}, zipfile.ZIP_LZMA), CorruptDataError, "compressed in a way"),
        (flipped(zipped({"a.npy": array("(100,)", bytes(range(100)))}, zipfile.ZIP_STORED), 150), CorruptDataError, "CRC"),
    ],
)
def test_a_broken_npz_file_is_refused(buffer, tmp_path, monkeypatch, data, error, words):
    monkeypatch.chdir(tmp_path)
    Path("rows.npz").write_bytes(data)
    peak_memory(again=True)  # The data was made in this process.
    with pytest.raises(error, match=words):
        import_table(buffer, Path("rows.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]


# -- Parquet ------------------------------------------------------------------------------------------------------------------------------------


def parquet(table: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def claiming(shape: list[int], dtype: str = "F32") -> bytes:
    """A column of bytes that says that it is a field."""
    said = {b"tdreplay": json.dumps({"name": "a", "dtype": dtype, "shape": shape})}
    schema = pyarrow.schema([pyarrow.field("a", pyarrow.binary(8), metadata=said)])
    return parquet(pyarrow.table({"a": pyarrow.array([bytes(8)] * 4, pyarrow.binary(8))}, schema=schema))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", CorruptDataError, "no Parquet file"),
        (b"PAR1" + struct.pack("<I", 1 << 30) + b"PAR1", CorruptDataError, "no Parquet file"),
        (parquet(pyarrow.table({"a": [1, 2, 3]}))[:-30], CorruptDataError, "no Parquet file"),
        (flipped(parquet(pyarrow.table({"a": list(range(1000))}), use_dictionary=False), 6), CorruptDataError, "rows.parquet: "),
        (parquet(pyarrow.table({"a": [1, None, 3]})), CodecError, "column 'a' has 1 nulls"),
        (parquet(pyarrow.table({"a": ["x", "y"]})), CodecError, "is of type string"),
        (parquet(pyarrow.table({"a": [b"x", b"y"]})), CodecError, "is of type binary"),
        (parquet(pyarrow.table({"a": [[1], [2, 3]]})), CodecError, "lists of several lengths"),
        (parquet(pyarrow.table({"a": [{"b": 1}, None]})), CodecError, "nulls"),
        (parquet(pyarrow.table({"a": []})), CodecError, "is of type null"),
        (claiming([1 << 40]), SchemaError, "a row .* must be at most"),
        (claiming([3]), CorruptDataError, "column 'a' has 8 bytes a row"),
        (claiming([8], "BOOL"), None, ""),
        (claiming([-1]), None, ""),
    ],
)
def test_a_broken_parquet_file_is_refused(tmp_path, data, error, words):
    (tmp_path / "rows.parquet").write_bytes(data)
    with ReplayBuffer("cpu", "cpu", 1000) as buffer:
        before = peak_memory(again=True)
        if error is None:  # It is an honest file: of bools, and of bytes.
            assert import_table(buffer, tmp_path).rows == 4
            return
        with pytest.raises(error, match=words):
            import_table(buffer, tmp_path)
        assert len(buffer) == 0
        assert peak_memory() - before < MOST_MEMORY


def test_without_pyarrow_the_error_says_what_to_install(buffer, tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(parquet(pyarrow.table({"a": [1, 2, 3]})))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'tdreplay\[parquet\]'"):
        import_table(buffer, tmp_path)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'tdreplay\[parquet\]'"):
        export_table(buffer, tmp_path / "made", file_format="parquet")


# -- folders ------------------------------------------------------------------------------------------------------------------------------------


def change(**entries: Any) -> Callable[[Path], None]:
    """What changes entries of the manifest."""

    def changed(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | entries))

    return changed


def change_shard(**entries: Any) -> Callable[[Path], None]:
    """What changes entries of the first shard."""

    def changed(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["shards"][0] |= entries
        (path / "manifest.json").write_text(json.dumps(manifest))

    return changed


def move_out(path: Path) -> None:
    (path / "rows-00000.safetensors").rename(path.parent / "elsewhere")


def link(path: Path) -> None:
    move_out(path)
    (path / "rows-00000.safetensors").symlink_to(path.parent / "elsewhere")


def pipe(path: Path) -> None:
    move_out(path)
    os.mkfifo(path / "rows-00000.safetensors")


def flip(path: Path) -> None:
    shard = path / "rows-00001.safetensors"
    shard.write_bytes(flipped(shard.read_bytes(), -1 + shard.stat().st_size))


def mix(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "rows-00002.npz").touch()


SCHEMA = {"fields": [{"name": "a", "dtype": "F32", "shape": [1 << 47]}], "row_shape": []}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), CorruptDataError, "no manifest"),
        (lambda path: (path / "manifest.json").write_text("{}"), CorruptDataError, "no manifest"),
        (change(version=2), FailedPreconditionError, "a newer version"),
        (change(rows=11), CorruptDataError, "another number of rows"),
        (change(file_format="pickle"), CorruptDataError, "'pickle' must be one of"),
        (change(schema=SCHEMA), CorruptDataError, "a row .* must be at most"),
        (change_shard(file="../elsewhere.safetensors"), CorruptDataError, "must lie beside the manifest"),
        (change_shard(file="/etc/passwd"), CorruptDataError, "must lie beside the manifest"),
        (change_shard(file="rows-00001.safetensors"), CorruptDataError, "comes twice"),
        (change_shard(rows=-1), CorruptDataError, "rows .* must be"),
        (change_shard(bytes=10), CorruptDataError, "is not there with the 10 bytes"),
        (change_shard(sha256="0" * 64), CorruptDataError, "bytes of it changed"),
        (move_out, CorruptDataError, "is not there"),
        (link, FailedPreconditionError, "is a link"),
        (pipe, CorruptDataError, "is not there"),
        (
            lambda path: (path / "manifest.json").unlink() or (path / "rows-00002.npz").touch(),
            FailedPreconditionError,
            "files of one of these formats",
        ),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(buffer, tmp_path, change, error, words):
    made(tmp_path / "made")
    change(tmp_path / "made")
    with pytest.raises(error, match=words):
        import_table(buffer, tmp_path / "made")


def test_of_a_broken_shard_nothing_is_stored(tmp_path):
    made(tmp_path / "made")
    flip(tmp_path / "made")
    with ReplayBuffer("cpu", "cpu", 1000) as buffer:
        with pytest.raises(CorruptDataError, match=r"rows-00001.safetensors: .* changed; of 10 rows at least 6 are stored"):
            import_table(buffer, tmp_path / "made")
        assert len(buffer) == 6


def test_other_paths_are_refused(buffer, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for name, words in (("none", "is not there"), ("pipe.npz", "no regular file")):
        with pytest.raises(FailedPreconditionError, match=words):
            import_table(buffer, tmp_path / name)


def made(path: Path) -> None:
    with ReplayBuffer("cpu", "cpu", 10) as buffer:
        buffer.add_batch(rows(10))
        export_table(buffer, path, rows_per_shard=6)
