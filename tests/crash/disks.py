"""Small disks for the crash tests: file systems of their own, on loop devices and in memory. They need the right to mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest


@cache
def _why_not() -> str:
    """Why no loop device can be mounted here; '' where one can."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return "mounting a loop device takes root, and mkfs.ext4"
    with tempfile.TemporaryDirectory(prefix="tdreplay-mount-") as scratch:
        try:
            with mounted(ext4_image(Path(scratch) / "image", 1 << 20), Path(scratch) / "disk"):
                return ""
        except subprocess.CalledProcessError as error:
            return f"no loop device can be mounted here: {error.stderr.strip()}"


@pytest.fixture
def mounts() -> None:
    """Skips a test where nothing can be mounted."""
    if _why_not():
        pytest.skip(_why_not())


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """As `tmp_path`, in memory where that can be mounted: for tests that wait for flushes, and whose disk does not matter."""
    if _why_not():
        yield tmp_path
    else:
        with memory_disk(tmp_path / "memory", 1 << 30) as memory:
            yield memory


def ext4_image(path: Path, size: int) -> Path:
    """A file with an empty ext4 file system of `size` bytes, of which none is reserved for root."""
    path.touch()
    os.truncate(path, size)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", str(path))
    return path


def repair(image: Path) -> None:
    """Mends an image that is not mounted, as one does where the disk had errors: its file system may have stopped itself, and would be read-only."""
    assert _run("e2fsck", "-f", "-y", str(image), check=False) <= 1, "it could not be repaired"


@contextmanager
def mounted(image: Path, at: Path, *options: str) -> Iterator[Path]:
    """An image, mounted over a loop device."""
    with _mounted(at, "-o", ",".join(("loop", *options)), str(image)):
        yield at


@contextmanager
def memory_disk(at: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes in memory."""
    with _mounted(at, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield at


@contextmanager
def read_only(at: Path) -> Iterator[None]:
    """Makes what is mounted read-only while the context is open."""
    _run("mount", "-o", "remount,ro", str(at))
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(at))


@contextmanager
def _mounted(at: Path, *arguments: str) -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    _run("mount", *arguments, str(at))
    try:
        yield
    finally:
        _unmount(at)


def _unmount(at: Path) -> None:
    deadline = time.monotonic() + 5
    while _run("umount", str(at), check=False):
        if time.monotonic() > deadline:
            _run("umount", "--lazy", str(at))  # Whatever holds it: it must not outlive the test.
            raise AssertionError(f"{at} is still in use")
        time.sleep(0.02)  # A killed process gives its files back a moment later.


def _run(*command: str, check: bool = True) -> int:
    return subprocess.run(command, check=check, capture_output=True, text=True).returncode


def fill(directory: Path) -> Path:
    """A file that takes all the space that is left on a disk."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 9, 1):
            _write_until_full(file.fileno(), bytes(size))
        os.fsync(file.fileno())
    return filler


def _write_until_full(file: int, data: bytes) -> None:
    try:
        while True:
            os.write(file, data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
