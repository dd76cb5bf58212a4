"""Answers that are kept for a moment."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tdreplay.errors import TableNotFoundError
from tdreplay_client.dashboard.kept import MOST, KeptAnswers


def failing() -> NoReturn:
    raise TableNotFoundError


def test_nothing_is_kept_of_what_could_not_be_answered():
    kept = KeptAnswers()
    for name in range(1000):
        with pytest.raises(TableNotFoundError):
            kept.find(("histograms", name), 10.0, failing)
    assert not kept._making  # noqa: SLF001 - the memory is what is tested.
    assert not kept._answers  # noqa: SLF001


def test_an_answer_is_made_once_and_the_oldest_goes():
    kept, made = KeptAnswers(), []
    for name in [*range(MOST), *range(MOST), MOST]:
        kept.find(name, 100.0, lambda name=name: made.append(name))
    assert made == list(range(MOST + 1))
    assert len(kept._making) == len(kept._answers) == MOST  # noqa: SLF001
