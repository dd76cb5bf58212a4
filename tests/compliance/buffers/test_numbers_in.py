"""Numbers are stored by their value, or refused with the field, the value and the rule: on every way into every kind of buffer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import InvalidArgumentError, SchemaError
from tdreplay.fields import DTYPES
from tdreplay_client import RemoteReplayBuffer

STAND_INS = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", STAND_INS, ids=str)
def test_numbers_are_stored_by_their_value_where_numpy_lacks_the_dtype(way, dtype):
    way.put({"r": torch.tensor(0.5, dtype=dtype)})
    for number in (1, 1.5, np.float64(2), np.float32(-2), np.int16(3), math.nan):
        way.put({"r": number})
    assert way.stored["r"].dtype is dtype
    assert way.stored["r"].float().tolist()[:6] == [0.5, 1, 1.5, 2, -2, 3]
    assert way.stored["r"].float()[6].isnan()


@pytest.mark.parametrize("dtype", STAND_INS, ids=str)
def test_lists_are_stored_by_their_value_and_arrays_of_bits_are_refused(way, dtype):
    way.put({"r": torch.tensor([0.5, 1], dtype=dtype)})
    for bits in (np.zeros(2, np.int16), np.zeros(2, np.uint8), torch.zeros(2, dtype=torch.int16), torch.zeros(2)):
        with pytest.raises(SchemaError, match="'r'"):
            way.put({"r": bits})
    way.put({"r": [2, -0.5]})
    assert way.stored["r"].float().tolist() == [[0.5, 1], [2, -0.5]]


FIRST = {name: torch.ones((), dtype=dtype) for name, dtype in DTYPES.items()}
MISFITS = [
    ("U8", 300, "300.*0 to 255"),
    ("U8", -1, "-1.*0 to 255"),
    ("U64", -1, "-1.*0 to 18446744073709551615"),
    ("I8", np.int64(128), "128.*-128 to 127"),
    ("I64", 2**70, f"{2**70}.*9223372036854775807"),
    ("I64", 0.5, "float 0.5"),
    ("I64", 1.0, "float 1.0"),
    ("I64", True, "bool True"),
    ("BOOL", 1, "int 1"),
    ("F32", True, "bool True"),
    ("F32", 1e300, r"1e\+300.*at most 3.4028235e\+38"),
    ("F32", np.float64(-1e39), r"-1e\+39.*at most"),
    ("F32", 10**39, r"100.*at most"),
    ("F32", 1j, "complex 1j"),
    ("F16", 70000, "70000.*at most 65504"),
    ("BF16", 1e39, r"1e\+39.*at most 3.3895314e\+38"),
    ("F8_E4M3", 1000, "1000.*at most 448"),
    ("F8_E4M3", math.inf, "inf.*at most 448"),
    ("F8_E5M2", 1e5, "100000.*at most 57344"),
    ("F64", 2**2000, "at most"),
    ("C64", complex(0, 1e300), "at most"),
    ("F32", "one", "'one'"),
    ("F32", None, "None"),
]


@pytest.mark.parametrize(("field", "number", "words"), MISFITS, ids=[f"{field}-{str(number)[:20]}" for field, number, _ in MISFITS])
def test_a_number_that_does_not_fit_is_refused_and_the_next_row_is_right(way, field, number, words):
    way.put({"a": 1, "x": FIRST[field], "z": 1})
    with pytest.raises(SchemaError, match=f"'x'.*{words}"):
        way.put({"a": 2, "x": number, "z": 2})
    way.put({"a": 3, "x": FIRST[field], "z": 3})
    assert way.stored["a"].tolist() == way.stored["z"].tolist() == [1, 3]
    assert torch.equal(way.stored["x"], torch.stack([FIRST[field]] * 2))


@pytest.mark.parametrize("first", [1e300, 2**70, 2**63, 1e300j], ids=str)
def test_a_first_number_that_does_not_fit_is_refused_and_fixes_nothing(way, first):
    with pytest.raises(SchemaError, match="'x'"):
        way.put({"x": first})
    way.put({"y": 1.5})
    assert way.stored["y"].tolist() == [1.5]


def test_infinite_numbers_and_the_largest_ones_are_stored(way):
    way.put({"x": torch.tensor(0.0), "n": torch.tensor(0, dtype=torch.uint64)})
    for number in (math.inf, -math.inf, 3.4028235e38, 10**38, np.float64(0.1)):
        way.put({"x": number, "n": 2**64 - 1})
    assert way.stored["x"].tolist() == torch.tensor([0, math.inf, -math.inf, 3.4028235e38, 1e38, 0.1]).tolist()
    assert way.stored["n"].numpy().tolist() == [0, *[2**64 - 1] * 5]


def test_numbers_take_the_dtypes_of_a_table_that_others_filled(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as other, RemoteReplayBuffer(address, table=table) as buffer:
        other.add_batch(TensorDict({"r": torch.zeros(1, dtype=torch.float64), "n": torch.zeros(1, dtype=torch.int32)}, [1]))
        buffer.add({"r": 0.1, "n": 1})
        with buffer.writer() as writer:
            writer.append({"r": 0.2, "n": 2})
        other.reset()
        other.add({"r": torch.zeros(()), "n": torch.zeros((), dtype=torch.int8)})
        buffer.add({"r": 0.3, "n": 3})
        assert buffer.sample_all()["n"].tolist() == [0, 3]
        assert buffer.sample_all()["r"].dtype is torch.float32


# -- cast -------------------------------------------------------------------------------------------------------------------------------------


def test_cast_converts_what_keeps_its_meaning(casting):
    casting.put({"r": np.zeros(2, np.float32), "n": torch.tensor(0, dtype=torch.int16), "d": False, "h": torch.tensor(0.5, dtype=torch.bfloat16)})
    casting.put({"r": np.ones(2), "n": torch.tensor(2.0), "d": torch.tensor(1), "h": np.float64(1.5)})
    casting.put({"r": torch.tensor([1, 2]), "n": np.array([3.0]), "d": 1.0, "h": True})
    stored = casting.stored
    assert stored["r"].tolist() == [[0, 0], [1, 1], [1, 2]]
    assert (stored["n"].tolist(), stored["n"].dtype) == ([0, 2, 3], torch.int16)
    assert stored["d"].tolist() == [False, True, True]
    assert stored["h"].float().tolist() == [0.5, 1.5, 1]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.zeros((), dtype=torch.int64), torch.tensor(0.5)),
        (torch.zeros((), dtype=torch.int64), torch.tensor(math.nan)),
        (torch.zeros((), dtype=torch.int64), torch.tensor(2.0**63)),
        (torch.zeros((), dtype=torch.uint8), torch.tensor(-1)),
        (torch.zeros((), dtype=torch.bool), torch.tensor(2)),
        (torch.zeros(()), torch.tensor(1e300, dtype=torch.float64)),
        (torch.zeros(()), torch.tensor(1j)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
    ],
    ids=str,
)
def test_cast_refuses_what_would_lose_its_meaning(casting, first, then):
    casting.put({"x": first})
    with pytest.raises(SchemaError, match="'x'"):
        casting.put({"x": then})
    casting.put({"x": first})
    assert casting.stored["x"].shape == (2, *first.shape)


def test_without_cast_another_dtype_is_refused(way):
    way.put({"x": torch.zeros(2)})
    for other in (torch.zeros(2).double(), np.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(SchemaError, match=r"'x'.*F32\[2\]"):
            way.put({"x": other})
    assert len(way.stored) == 1


def test_cast_follows_a_schema_that_another_client_changed(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as other, RemoteReplayBuffer(address, table=table, cast=True) as buffer:
        buffer.add({"x": 1.0})
        buffer.add({"x": np.float64(2)})
        other.reset()
        other.add({"x": torch.tensor([3])})
        buffer.add({"x": torch.tensor(4.0)})
        assert buffer.sample_all()["x"].tolist() == [[3], [4]]


@pytest.mark.parametrize("flag", ["yes", 1])
def test_cast_is_a_flag(make_buffer, flag):
    with pytest.raises(InvalidArgumentError, match="cast"):
        make_buffer(3, cast=flag)


# -- the default device -----------------------------------------------------------------------------------------------------------------------


def test_the_default_device_of_torch_does_not_matter(way):
    with torch.device("meta"):
        way.put({"x": 1.0, "o": np.zeros(2, np.float32), "l": [1, 2], "h": torch.tensor(0.5, dtype=torch.bfloat16, device="cpu"), "e": np.zeros(0)})
        way.put({"x": 2.0, "o": np.ones(2, np.float32), "l": [3, 4], "h": 1, "e": np.zeros(0)})
        stored = way.stored
    assert stored["x"].tolist() == [1, 2]
    assert stored["h"].tolist() == [0.5, 1]
