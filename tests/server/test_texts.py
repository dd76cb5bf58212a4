"""How the text of an error becomes the text of a status."""

from __future__ import annotations

import pytest

from tdreplay.texts import printable
from tdreplay_server.transport.guards.details import details_of


@pytest.mark.parametrize("character", ["a", "%", "ä", "\u20ac", "\U0001f600", "\n", "\ud800", "\x00"])
def test_details_fit_into_a_header_as_grpc_encodes_them(character):
    text = details_of(character * 5000)
    assert text
    assert text.isprintable()
    encoded = sum(1 if 32 <= byte < 127 and byte != ord("%") else 3 for byte in text.encode())
    assert encoded <= 3000


def test_plain_text_stays_as_it_is():
    assert printable("table 'a' is not there; ä €") == "table 'a' is not there; ä €"
    assert details_of("batch_size (0) must be a whole number") == "batch_size (0) must be a whole number"
