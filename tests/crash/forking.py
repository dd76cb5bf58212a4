"""A pytest plugin: one zygote for all tests that want one. To import what a server imports takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from processes import new_zygote
from zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks the processes of `processes`."""
    with new_zygote() as made:
        yield made
