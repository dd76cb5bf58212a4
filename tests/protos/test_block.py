"""Blocks: what is encoded comes back, safetensors agrees in both directions, and bytes of any other kind are refused, soon and by name."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdreplay.block import ALIGNMENT, Block, Layout, checked_places, decode, layout
from tdreplay.errors import CodecError, InvalidArgumentError, SchemaError
from tdreplay.fields import DTYPES, Field
from tdreplay.limits import MAX_HEADER_BYTES, MAX_RANK
from tdreplay.memory import as_rows
from tdreplay.schema import Columns, Schema

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
SECONDS = 0.1

unhurried = settings(deadline=None)  # Time is asserted where it matters, as CPU time: the machine may be busy.
thorough = settings(deadline=None, max_examples=300)
dtypes = st.sampled_from(list(DTYPES.values()))
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name not in ("__metadata__", "index", "row_id"))


def content(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bytes, NaNs of all kinds among them; a bool is 0 or 1."""
    size = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(2 if dtype is torch.bool else 256, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return data.view(dtype).view(shape)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def described(columns: Columns) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Columns as values that compare bit for bit."""
    return {name: (column.dtype, tuple(column.shape), raw(column)) for name, column in columns.items()}


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """Columns of random fields, and their batch shape."""
    batch_shape = (draw(st.integers(0, 4)), *draw(st.lists(st.integers(0, 3), max_size=2)))
    fields = draw(st.dictionaries(names, st.tuples(dtypes, shapes, st.integers(0, 1 << 32)), max_size=6))
    return {name: content(dtype, (*batch_shape, *shape), seed) for name, (dtype, shape, seed) in fields.items()}, batch_shape


def layout_of(columns: Columns, batch_shape: tuple[int, ...]) -> Layout:
    fields = tuple(Field(name, column.dtype, tuple(column.shape[1:])) for name, column in columns.items())
    return layout(fields, batch_shape[0], batch_shape[1:])


def encoded(columns: Columns, batch_shape: tuple[int, ...]) -> bytes:
    place = layout_of(columns, batch_shape)
    memory = np.empty(place.size, np.uint8)
    for name, rows in place.write_header(memory).items():
        rows[:] = as_rows(columns[name].contiguous())
    return memory.tobytes()


def decoded(data: bytes) -> Block:
    return decode(np.frombuffer(bytearray(data), np.uint8))


def address(memory: np.ndarray) -> int:
    return memory.__array_interface__["data"][0]


# -- round trips ------------------------------------------------------------------------------------------------------------------------------


@unhurried
@given(batches())
def test_what_is_encoded_comes_back_bit_for_bit(batch):
    columns, batch_shape = batch
    block = decoded(encoded(columns, batch_shape))
    assert (block.batch_shape, block.rows) == (batch_shape, batch_shape[0])
    assert described(block.columns) == described(columns)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (1,) * (MAX_RANK - 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_travels_in_every_kind_of_shape(dtype, shape):
    columns = {"a": content(dtype, (2, *shape), 7), "scalar": content(dtype, (2,), 8)}
    assert described(decoded(encoded(columns, (2,))).columns) == described(columns)


@unhurried
@given(batches())
def test_safetensors_reads_what_is_encoded(batch):
    assert described(safetensors.torch.load(encoded(*batch))) == described(batch[0])


@unhurried
@given(batches())
def test_what_safetensors_encodes_is_read(batch):
    columns, batch_shape = batch
    block = decoded(safetensors.torch.save(columns, {"batch_shape": json.dumps(batch_shape)}))
    assert block.batch_shape == batch_shape
    assert described(block.columns) == described(columns)


def test_index_and_row_id_are_one_number_a_row_also_where_rows_are_batches():
    columns = {"obs": torch.zeros(2, 5, 3), "index": torch.tensor([4, 5]), "row_id": torch.tensor([14, 15])}
    assert described(decoded(encoded(columns, (2, 5))).columns) == described(columns)


# -- places in memory -------------------------------------------------------------------------------------------------------------------------


@unhurried
@given(batches())
def test_every_field_is_aligned_and_no_byte_is_left_out(batch):
    place = layout_of(*batch)
    assert len(place.header) % ALIGNMENT == 0
    end = 0
    for span in place.spans:
        assert (span.start, span.start % span.dtype.itemsize) == (end, 0)
        end += span.size
    assert (end, len(place.header) + end) == (place.data_size, place.size)


def test_decoding_gives_views_of_the_memory():
    memory = np.frombuffer(bytearray(encoded({"a": torch.arange(6), "b": torch.ones(6, dtype=torch.uint8)}, (6,))), np.uint8)
    assert address(memory) % ALIGNMENT == 0
    columns = decode(memory).columns
    memory[-6:] = 9
    memory[-54:-6] = 0
    assert columns["b"].tolist() == [9] * 6
    assert columns["a"].tolist() == [0] * 6


@pytest.mark.parametrize("shift", [1, 2, 4, 8, 15])
def test_a_block_that_is_not_aligned_is_read_into_aligned_tensors(shift):
    columns = {name: content(dtype, (3, 5), 1) for name, dtype in DTYPES.items()}
    data = encoded(columns, (3,))
    memory = np.empty(len(data) + 2 * ALIGNMENT, np.uint8)
    start = -address(memory) % ALIGNMENT + shift
    memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
    block = decode(memory[start : start + len(data)])
    assert described(block.columns) == described(columns)
    assert all(column.data_ptr() % column.dtype.itemsize == 0 for column in block.columns.values())


def test_fields_that_are_not_aligned_in_the_block_are_read_into_aligned_tensors():
    header = {
        "__metadata__": {"batch_shape": "[1]"},
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a": {"dtype": "I64", "shape": [1], "data_offsets": [1, 9]},
    }
    columns = decoded(block_of(header, b"\x07" + struct.pack("<q", -5))).columns
    assert (columns["a"].tolist(), columns["b"].tolist()) == ([-5], [7])
    assert columns["a"].data_ptr() % 8 == 0


def test_decoded_tensors_keep_the_memory_alive():
    columns = decoded(encoded({"a": torch.arange(1 << 16)}, (1 << 16,))).columns
    others = [bytearray(b"\xff" * (1 << 19)) for _ in range(8)]
    assert torch.equal(columns["a"], torch.arange(1 << 16))
    assert len(others) == 8


def test_a_header_above_the_limit_is_not_made():
    fields = tuple(Field(f"{number}.{'x' * 200}", torch.uint8, ()) for number in range(300))
    with pytest.raises(CodecError, match=f"300 fields .* at most {MAX_HEADER_BYTES} bytes"):
        layout(fields, 1, ())


# -- the document -----------------------------------------------------------------------------------------------------------------------------


def test_the_dump_in_the_protocol_document_is_what_the_encoder_makes():
    (dump,) = re.findall(r"^```hexdump\n(.*?)^```", PROTOCOL.read_text(), re.M | re.S)
    lines = [re.fullmatch(r"([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+?) +\|(.*)\|", line) for line in dump.splitlines()]
    documented = b"".join(bytes.fromhex(line[2]) for line in lines)
    columns = {"obs": torch.tensor([[1.0, 2.0], [3.0, -0.5]]), "done": torch.tensor([False, True])}
    assert documented == encoded(columns, (2,))
    assert [int(line[1], 16) for line in lines] == list(range(0, len(documented), 16))
    printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in documented)
    assert "".join(line[3] for line in lines) == printable


# -- hostile bytes ----------------------------------------------------------------------------------------------------------------------------


def block_of(header: object, data: bytes = b"") -> bytes:
    """A block with any header: bytes, text, or what is to be JSON."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    head = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(head)) + head + data


def field(dtype: object = "U8", shape: object = (2,), data_offsets: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


def with_fields(**fields: object) -> bytes:
    """A block of two rows and two bytes of data, with these fields."""
    return block_of({"__metadata__": {"batch_shape": "[2]"}, **fields}, b"xy")


def with_metadata(metadata: object) -> bytes:
    return block_of({"__metadata__": metadata, "a": field()}, b"xy")


def with_batch_shape(text: object) -> bytes:
    return with_metadata({"batch_shape": text})


GOOD = with_fields(a=field())
HOSTILE = {
    # The bytes around the header.
    "nothing": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "no header": (bytes(8), "not JSON"),
    "header cut off": (GOOD[:20], "truncated"),
    "length beyond the end": (struct.pack("<Q", 1000) + b"{}", "truncated"),
    "length of 2^64 - 1": (b"\xff" * 8 + b"{}", "at most 65536"),
    "header above the limit": (block_of(b"{" + b" " * MAX_HEADER_BYTES + b"}"), "at most 65536"),
    "data cut off": (GOOD[:-1], "2 bytes of data, 1 are there"),
    "a byte too many": (GOOD + b"z", "2 bytes of data, 3 are there"),
    "data that no field has": (with_fields(), "0 bytes of data, 2 are there"),
    # JSON.
    "not JSON": (block_of("safetensors"), "not JSON"),
    "two objects": (block_of("{}{}"), "not JSON"),
    "JSON that is cut off": (block_of('{"__metadata__":{"batch_sh'), "not JSON"),
    "not UTF-8": (block_of(b'{"\xff":1}'), "not JSON"),
    "UTF-16": (block_of("{}".encode("utf-16")), "not JSON"),
    "a byte order mark": (block_of("\ufeff{}"), "not JSON"),
    "a zero byte": (block_of(GOOD[8:-2] + b"\0", b"xy"), "not JSON"),
    "a list": (block_of([]), "must be a JSON object"),
    "a number": (block_of(1), "must be a JSON object"),
    "null": (block_of(None), "must be a JSON object"),
    "nested lists": (block_of("[" * 60_000), "not JSON"),
    "nested lists, closed": (block_of("[" * 30_000 + "]" * 30_000), "not JSON"),
    "nested objects": (block_of('{"a":' * 12_000), "not JSON"),
    "a number of 60,000 digits": (block_of('{"__metadata__":' + "1" * 60_000 + "}"), "not JSON"),
    "a field twice": (block_of(GOOD[8:-3] + b"," + json.dumps({"a": field()}).encode()[1:], b"xy"), "comes twice"),
    "a field twice, escaped": (block_of(GOOD[8:-3] + b',"\\u0061":{}}', b"xy"), "comes twice"),
    "metadata twice": (block_of('{"__metadata__":{"batch_shape":"[2]"},"__metadata__":{"batch_shape":"[2]"}}'), "comes twice"),
    "batch shape twice": (block_of('{"__metadata__":{"batch_shape":"[2]","batch_shape":"[3]"}}'), "comes twice"),
    "dtype twice": (with_fields(a=field()).replace(b'"shape": [2]', b'"dtype":"I8"'), "comes twice"),
    # The batch shape.
    "no metadata": (block_of({"a": field()}, b"xy"), "batch_shape .* must be a JSON list"),
    "null metadata": (with_metadata(None), "batch_shape .* must be"),
    "metadata is a list": (with_metadata(["batch_shape"]), "batch_shape .* must be"),
    "metadata without a batch shape": (with_metadata({"format": "pt"}), "batch_shape .* must be"),
    "batch shape is no text": (with_batch_shape([2]), "batch_shape .* must be"),
    "batch shape is not JSON": (with_batch_shape("[2"), "batch_shape .* must be"),
    "batch shape is a number": (with_batch_shape("2"), "batch_shape .* must be"),
    "batch shape is empty": (with_batch_shape("[]"), "batch_shape .* must be"),
    "batch shape is negative": (with_batch_shape("[-2]"), "batch_shape .* must be"),
    "batch shape is a float": (with_batch_shape("[2.0]"), "batch_shape .* must be"),
    "batch shape is a bool": (with_batch_shape("[true]"), "batch_shape .* must be"),
    "batch shape is NaN": (with_batch_shape("[NaN]"), "batch_shape .* must be"),
    "batch shape is huge": (with_batch_shape(f"[{1 << 48}]"), "batch_shape .* must be"),
    "batch shape of a huge product": (with_batch_shape(f"[{1 << 24},{1 << 24}]"), "batch_shape .* must be"),
    "batch shape of 5,000 digits": (with_batch_shape(f"[{'9' * 5000}]"), "batch_shape .* must be"),
    "batch shape of a high rank": (with_batch_shape(json.dumps([1] * (MAX_RANK + 1))), "batch_shape .* must be"),
    "batch shape is nested": (with_batch_shape("[" * 20_000 + "]" * 20_000), "batch_shape .* must be"),
    "another batch shape": (with_batch_shape("[3]"), r"'a' of shape \[2\] must start with the batch shape \[3\]"),
    "a batch shape of more dimensions": (with_batch_shape("[2,1]"), r"must start with the batch shape \[2, 1\]"),
    "an index of another length": (with_fields(index=field(shape=[1, 2])), r"'index' .* must start with the batch shape \[2\]"),
    # Fields.
    "field is null": (with_fields(a=None), "'a' must have dtype, shape and data_offsets"),
    "field is a list": (with_fields(a=["dtype", "shape", "data_offsets"]), "'a' must have"),
    "field is a text": (with_fields(a="dtype"), "'a' must have"),
    "field is empty": (with_fields(a={}), "'a' must have"),
    "no dtype": (with_fields(a={"shape": [2], "data_offsets": [0, 2]}), "'a' must have"),
    "no shape": (with_fields(a={"dtype": "U8", "data_offsets": [0, 2]}), "'a' must have"),
    "no offsets": (with_fields(a={"dtype": "U8", "shape": [2]}), "'a' must have"),
    "one offset": (with_fields(a=field(data_offsets=[0])), "'a' must have"),
    "three offsets": (with_fields(a=field(data_offsets=[0, 1, 2])), "'a' must have"),
    "offsets are a number": (with_fields(a=field(data_offsets=2)), "'a' must have"),
    "offsets are a text": (with_fields(a=field(data_offsets="02")), "data_offsets .* must span"),
    "offsets are an object": (with_fields(a=field(data_offsets={"0": 0, "2": 2})), "data_offsets .* must span"),
    "a name with a lone surrogate": (with_fields(**{"\ud800": field(dtype="?")}), r"'\\ud800': dtype '\?' cannot be stored"),
    "thousands of fields": (block_of({str(number): {} for number in range(5000)}), "batch_shape .* must be"),
    "thousands of broken fields": (with_fields(**{str(number): {} for number in range(5000)}), "'0' must have"),
    "thousands of fields on the same bytes": (
        with_fields(**{str(number): field() for number in range(1000)}),
        "starts at byte 0, it must start at 2",
    ),
    # Dtypes.
    "an unknown dtype": (with_fields(a=field(dtype="F128")), "dtype 'F128' cannot be stored"),
    "a dtype below a byte": (with_fields(a=field(dtype="F4", shape=[4])), "dtype 'F4' cannot be stored"),
    "a dtype in small letters": (with_fields(a=field(dtype="u8")), "dtype 'u8' cannot be stored"),
    "a dtype that is a list": (with_fields(a=field(dtype=["U8"])), "cannot be stored"),
    "a dtype that is null": (with_fields(a=field(dtype=None)), "dtype 'None' cannot be stored"),
    "a dtype of 60,000 letters": (with_fields(a=field(dtype="F" * 60_000)), "cannot be stored"),
    # Shapes.
    "a negative dimension": (with_fields(a=field(shape=[-2])), "shape .* whole numbers"),
    "two negative dimensions": (with_fields(a=field(shape=[-2, -1])), "shape .* whole numbers"),
    "a float dimension": (with_fields(a=field(shape=[2.0])), "shape .* whole numbers"),
    "a dimension of 1e0": (block_of(GOOD[8:-2].replace(b'"shape": [2]', b'"shape":[2e0]'), b"xy"), "shape .* whole numbers"),
    "a bool dimension": (with_fields(a=field(shape=[2, True])), "shape .* whole numbers"),
    "a text dimension": (with_fields(a=field(shape=["2"])), "shape .* whole numbers"),
    "a NaN dimension": (with_fields(a=field(shape=[2, float("nan")])), "shape .* whole numbers"),
    "an infinite dimension": (with_fields(a=field(shape=[2, float("inf")])), "shape .* whole numbers"),
    "a list dimension": (with_fields(a=field(shape=[[2]])), "shape .* whole numbers"),
    "a shape that is null": (with_fields(a=field(shape=None)), "shape .* whole numbers"),
    "a shape that is a number": (with_fields(a=field(shape=2)), "shape .* whole numbers"),
    "a shape that is an object": (with_fields(a=field(shape={"2": 2})), "shape .* whole numbers"),
    "a dimension of 2^48": (with_fields(a=field(shape=[1 << 48])), "shape .* whole numbers"),
    "a dimension of 2^64": (with_fields(a=field(shape=[2, 1 << 64])), "shape .* whole numbers"),
    "a product that wraps around": (with_fields(a=field(shape=[2, 1 << 32, 1 << 31])), "shape .* whole numbers"),
    "an empty shape whose strides overflow": (with_fields(a=field(shape=[2, 0, 1 << 40, 1 << 40])), "shape .* whole numbers"),
    "a rank of 17": (with_fields(a=field(shape=[2, *[1] * MAX_RANK])), "at most 16 whole numbers"),
    "a rank of 10,000": (with_fields(a=field(shape=[2] * 10_000)), "at most 16 whole numbers"),
    "no dimension": (with_fields(a=field(shape=[], data_offsets=[0, 1])), "must start with the batch shape"),
    # Offsets.
    "a negative offset": (with_fields(a=field(data_offsets=[-2, 0])), "data_offsets .* must span"),
    "a float offset": (with_fields(a=field(data_offsets=[0, 2.0])), "data_offsets .* must span"),
    "a bool offset": (with_fields(a=field(data_offsets=[False, 2])), "data_offsets .* must span"),
    "a null offset": (with_fields(a=field(data_offsets=[None, 2])), "data_offsets .* must span"),
    "a NaN offset": (with_fields(a=field(data_offsets=[float("nan"), 2])), "data_offsets .* must span"),
    "a text offset": (with_fields(a=field(data_offsets=["0", "2"])), "data_offsets .* must span"),
    "huge offsets": (with_fields(a=field(data_offsets=[1 << 63, (1 << 63) + 2])), "data_offsets .* must span"),
    "offsets that fall": (with_fields(a=field(data_offsets=[2, 0])), "data_offsets .* must span"),
    "offsets that are too near": (with_fields(a=field(data_offsets=[0, 1])), "must span the 2 bytes"),
    "offsets that are too far apart": (with_fields(a=field(data_offsets=[0, 3])), "must span the 2 bytes"),
    "a gap before the first field": (with_fields(a=field(data_offsets=[1, 3])), "starts at byte 1, it must start at 0"),
    "a gap between fields": (with_fields(a=field(), b=field(data_offsets=[3, 5])), "starts at byte 3, it must start at 2"),
    "fields that overlap": (with_fields(a=field(), b=field(data_offsets=[1, 3])), "starts at byte 1, it must start at 2"),
    "fields on the same bytes": (with_fields(a=field(), b=field()), "starts at byte 0, it must start at 2"),
    "a field beyond the data": (with_fields(a=field(), b=field(data_offsets=[2, 4])), "4 bytes of data, 2 are there"),
    "an empty field inside another": (with_fields(a=field(), b=field(shape=[2, 0], data_offsets=[1, 1])), "starts at byte 1, it must start at 2"),
}


def test_the_block_that_the_hostile_ones_are_made_of_is_good():
    assert decoded(GOOD).columns["a"].tolist() == [120, 121]


@pytest.mark.parametrize(("data", "rule"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_block_is_refused_at_once_with_the_rule_that_it_breaks(data, rule):
    started = time.thread_time()
    with pytest.raises(CodecError, match=rule) as raised:
        decoded(data)
    assert time.thread_time() - started < SECONDS
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("place", ["shape", "dtype", "data_offsets"])
def test_nesting_at_the_edge_of_the_recursion_limit_is_refused(place):
    """At every depth: what the JSON parser still takes, the check that follows must take as well."""
    for depth in range(800, 1010):
        nested = f'"{place}": ' + "[" * depth + "]" * depth
        header = re.sub(rf'"{place}": ("U8"|\[[^]]*\])', nested, GOOD[8:-2].decode())
        assert nested in header
        with pytest.raises(CodecError):
            decoded(block_of(header, b"xy"))


@pytest.mark.parametrize(
    "fields",
    [
        [""],
        ["."],
        ["a."],
        [".a"],
        ["a..b"],
        ["a", "a.b"],
        ["a.b.c", "a"],
        ["a.b.c", "a.b"],
        ["\ud800"],
        ["a\0"],
        ["a\nb"],
        ["a\u2028"],
        ["\u202ea"],
        ["x" * 257],
        ["index"],
        ["row_id"],
        [],
    ],
    ids=ascii,
)
def test_a_block_with_names_that_cannot_be_stored_is_refused(fields):
    header = {name: field(data_offsets=[2 * n, 2 * n + 2]) for n, name in enumerate(fields)}
    started = time.thread_time()
    block = decoded(block_of({"__metadata__": {"batch_shape": "[2]"}, **header}, bytes(2 * len(fields))))
    with pytest.raises(SchemaError) as raised:
        Schema.of(block.columns)
    assert time.thread_time() - started < SECONDS
    assert str(raised.value).isprintable()


@st.composite
def mutated(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes of which some are changed, removed or repeated."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 8)))
        data[start:stop] = draw(st.one_of(st.binary(max_size=8), st.just(bytes(data[start:stop]) * 2), st.sampled_from(TOKENS)))
    return bytes(data)


TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"0",
    b"1",
    b"9" * 20,
    b"1e9",
    b"null",
    b"true",
    b"NaN",
    b"\\ud800",
    b"\\u0061",
    b"F64",
    b"U8",
]


def check_that_it_decodes_or_is_refused(data: bytes) -> None:
    try:
        block = decoded(data)
        Schema.of(block.columns, block.batch_shape[1:])
    except InvalidArgumentError:
        return
    assert all(column.shape[0] == block.rows and len(raw(column)) == column.nbytes for column in block.columns.values())


@thorough
@given(mutated(batches().map(lambda batch: encoded(*batch))))
def test_a_block_with_changed_bytes_decodes_or_is_refused(data):
    check_that_it_decodes_or_is_refused(data)


@thorough
@given(mutated(batches().map(lambda batch: encoded(*batch)[8:])))
def test_a_header_with_changed_bytes_decodes_or_is_refused(rest):
    """The length prefix follows the change, so that the JSON is reached."""
    end = rest.rfind(b"}") + 1
    check_that_it_decodes_or_is_refused(struct.pack("<Q", end) + rest)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=8,
)


@thorough
@given(
    metadata=st.one_of(json_values, st.fixed_dictionaries({"batch_shape": st.one_of(json_values, st.lists(st.integers(0, 3)).map(json.dumps))})),
    fields=st.dictionaries(
        st.text(max_size=4),
        st.one_of(
            json_values,
            st.fixed_dictionaries(
                {
                    "dtype": st.one_of(st.sampled_from(list(DTYPES)), json_values),
                    "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), json_values),
                    "data_offsets": st.one_of(st.tuples(st.integers(0, 8), st.integers(0, 8)), json_values),
                }
            ),
        ),
        max_size=3,
    ),
    data=st.binary(max_size=16),
)
def test_any_json_as_a_header_decodes_or_is_refused(metadata, fields, data):
    check_that_it_decodes_or_is_refused(block_of({**fields, "__metadata__": metadata}, data))


@pytest.mark.parametrize("changing", [True, False])
def test_bools_in_memory_that_others_may_write_are_copied_before_they_are_checked(changing):
    columns = {"done": np.array([True, False]), "x": np.arange(2, dtype=np.float32)}
    memory = np.frombuffer(bytearray(safetensors.numpy.save(columns, {"batch_shape": "[2]"})), np.uint8)
    places = checked_places(decode(memory), changing=changing)
    memory[memory == 1] = 2
    assert places["done"].view(np.uint8).tolist() == ([1, 0] if changing else [2, 0])
    with pytest.raises(CodecError, match="must be 0 or 1"):
        checked_places(decode(memory), changing=changing)
