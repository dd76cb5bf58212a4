"""Buffers of every kind, and every way of rows into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from compliance.buffers.ways import WAYS, Way
from compliance.kinds import BUFFERS, BufferKind, MakeBuffer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each kind runs over the files of tests that it names."""
    kept = [item for item in items if _runs(item)]
    config.hook.pytest_deselected(items=list(set(items).difference(kept)))
    items[:] = kept


def _runs(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    kind = None if callspec is None else BUFFERS.get(str(callspec.params.get("kind")))
    return kind is None or kind.files is None or item.path.stem in kind.files


@pytest.fixture
def address(address_of: Callable[[str], str]) -> str:
    """The server of tests that open remote buffers themselves."""
    return address_of("memory")


@pytest.fixture(params=BUFFERS)
def kind(request: pytest.FixtureRequest) -> BufferKind:
    """The kind of buffer under test."""
    found = BUFFERS[request.param]
    name = request.node.originalname
    if name in found.differs:
        pytest.skip(f"over shards: {found.differs[name]}")
    return found


@pytest.fixture
def maker(address_of: Callable[..., str], name_table: Callable[..., str]) -> Iterator[Callable[[BufferKind], MakeBuffer]]:
    """What makes the buffers of a kind. They are closed at the end."""
    with ExitStack() as stack:

        def maker_of(kind: BufferKind) -> MakeBuffer:
            if kind.shards:
                addresses = [address_of(kind.server, number) for number in range(kind.shards)]
                return lambda buffer_size, **options: stack.enter_context(kind.open(addresses, name_table(*addresses), buffer_size, **options))
            address = kind.server and address_of(kind.server)
            return lambda buffer_size, **options: stack.enter_context(
                kind.open(address, name_table(address) if address else "", buffer_size, **options)
            )

        yield maker_of


@pytest.fixture
def make_buffer(kind: BufferKind, maker: Callable[[BufferKind], MakeBuffer]) -> MakeBuffer:
    """Makes empty buffers of the kind under test: ``make_buffer(buffer_size, device="cpu")``."""
    return maker(kind)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, maker: Callable[[BufferKind], MakeBuffer]) -> Iterator[Way]:
    """One way in, without casting."""
    yield from opened(request.param, maker, cast=False)


@pytest.fixture(params=WAYS)
def casting(request: pytest.FixtureRequest, maker: Callable[[BufferKind], MakeBuffer]) -> Iterator[Way]:
    """One way in that converts rows to the dtypes of the table."""
    yield from opened(request.param, maker, cast=True)


def opened(way: str, maker: Callable[[BufferKind], MakeBuffer], cast: bool) -> Iterator[Way]:
    """A way in, which is closed before its buffer."""
    kind, method = WAYS[way]
    made = Way(maker(BUFFERS[kind])(100, cast=cast), method)
    yield made
    made.close()
