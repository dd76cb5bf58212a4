"""The value that a user gives for one field, as a tensor of the field's dtype. No value changes its meaning: 300 never becomes 44, nor 1e300 inf.

- Tensors and arrays have a dtype. It must be the field's.
- Numbers (Python's, NumPy's scalars, and lists of them) have no dtype. They take the field's if it is of their kind or of a wider one. The kinds,
  from narrow to wide, are whole, real and complex numbers; a bool fits only a field of bools.
- With ``cast`` a value of another dtype is converted, too, if it keeps its meaning: bools are 0 and 1, a whole number stays whole, and a finite
  number stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import CodecError, SchemaError
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.limits import shown
from tdreplay.memory import RAW

__all__ = ["NUMPY", "as_own_tensor", "dense", "fitted", "has_dtype", "quick_limits"]

Array: TypeAlias = npt.NDArray[Any]

NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    dtype: torch.empty(0, dtype=torch.float32 if dtype in RAW else dtype, device="cpu").numpy().dtype for dtype in DTYPES.values()
}
"""The dtypes that can be stored -> NumPy's. For one that NumPy does not have: a dtype that holds all of its values."""

WIDER = {"b": "b", "i": "iufc", "u": "iufc", "f": "fc", "c": "c"}
"""NumPy's kind of a number -> the kinds of fields that take it."""

SCALARS: dict[str, tuple[type, ...]] = {
    "b": (bool, np.bool_),
    "i": (int, np.int8, np.int16, np.int32, np.int64, np.longlong),
    "u": (np.uint8, np.uint16, np.uint32, np.uint64, np.ulonglong),
    "f": (float, np.float16, np.float32, np.float64),
}
"""NumPy's kind -> the types of numbers of that kind."""

MOST_DIMENSIONS = 64
"""The most dimensions of an array in NumPy."""


def _limit(dtype: torch.dtype) -> float:
    """What finite numbers must stay below, to be finite as `dtype`: halfway between its largest one and the next one that it would have."""
    info = torch.finfo(dtype)
    limit: float = info.max + math.ldexp(info.eps, math.frexp(info.max)[1] - 2)
    return limit


LIMITS = {dtype: _limit(dtype) for dtype in DTYPES.values() if dtype.is_floating_point or dtype.is_complex}


def quick_limits(dtype: torch.dtype) -> dict[type, tuple[Any, Any]]:
    """Type of a scalar -> the limits between which a field takes it without a closer look. Other scalars may fit, too."""
    target = NUMPY[dtype]
    if dtype in RAW or target.kind == "c":
        return {}
    limits: tuple[Any, Any] = (False, True)
    if target.kind != "b":
        limits = (torch.iinfo(dtype).min, torch.iinfo(dtype).max) if target.kind in "iu" else (-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return {scalar: limits for kind, scalars in SCALARS.items() if target.kind in WIDER[kind] for scalar in scalars}


def has_dtype(value: Any) -> bool:
    """Whether a value has a dtype of its own: a tensor, an array, or a list of these. A number has none."""
    value = _first(value)
    if isinstance(value, torch.Tensor):
        return True
    return hasattr(value, "__array__") and not isinstance(value, np.generic) and getattr(value, "ndim", 1) != 0


def _first(value: Any) -> Any:
    """The first element in nested lists. A list that holds itself has none."""
    for _ in range(MOST_DIMENSIONS):
        if not (isinstance(value, list | tuple) and value):
            break
        value = value[0]
    return value


def dense(name: str, value: torch.Tensor) -> torch.Tensor:
    """A dense tensor, without its gradient: its bytes can travel.

    Raises:
        CodecError: the tensor has no bytes, or not its own.
    """
    wrapper = type(value) is not torch.Tensor and type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if wrapper or value.layout is not torch.strided or value.is_nested or value.is_meta:
        raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel; it must be a dense tensor")
    return value.detach() if value.requires_grad else value


def as_own_tensor(name: str, value: Any) -> torch.Tensor:
    """A value that has a dtype, as a tensor of that dtype: a view if possible.

    Raises:
        CodecError: its dtype cannot be stored.
        SchemaError: the parts of a list differ.
    """
    if isinstance(value, torch.Tensor):
        return dense(name, value)
    if isinstance(value, list | tuple):
        return _stacked(name, [as_own_tensor(name, part) for part in value])
    return _of_array(name, value)


def _check_unmasked(name: str, value: Any) -> None:
    if isinstance(value, np.ma.MaskedArray):
        raise CodecError(f"field {name!r}: a masked array cannot travel: its mask would be lost. Give array.filled(...)")


def _stacked(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    kinds = {f"{DTYPE_NAMES.get(part.dtype, part.dtype)}{list(part.shape)}" for part in parts}
    if len(kinds) > 1:
        raise SchemaError(f"field {name!r}: the parts of a list must be alike, and these are {sorted(kinds)[:5]}")
    return torch.stack(parts)


def _of_array(name: str, value: Any) -> torch.Tensor:
    _check_unmasked(name, value)
    try:
        array = np.asarray(value)
        dtype = np.dtype(array.dtype.newbyteorder("=").str)  # NumPy has two types of 64 bits; torch knows this one.
        usual = array.flags.writeable and array.dtype.num == dtype.num and array.dtype.isnative and all(step >= 0 for step in array.strides)
        return torch.from_numpy(array if usual else np.array(array, array.dtype.newbyteorder("="), order="C").view(dtype))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel: {error}") from None


def fitted(name: str, value: Any, field: Field | None, *, cast: bool, batch: bool) -> torch.Tensor:
    """A value, of one row or of a whole batch, as a tensor for `field`. Numbers get the field's dtype, and with `cast` everything else does, too.

    The schema checks the result, so what still differs is refused there. Without a field, numbers become bool, int64, torch's default dtype or
    complex64, and NumPy's scalars keep their dtype.

    Raises:
        CodecError: the value cannot be stored.
        SchemaError: it does not fit; the message names the value and the rule.
    """
    if has_dtype(value):
        own = as_own_tensor(name, value)
        return own if field is None or not cast else _shaped(_cast(own, field), field, batch=batch)
    array = _numbers(name, value, field)
    if field is None:
        return _converted(array, Field(name, _default(value, array), ()))
    if array.size and not cast and NUMPY[field.dtype].kind not in WIDER[_kind(array)]:
        raise _misfit(field, array.flat[0] if array.ndim else value, "")
    column = _converted(array, field)
    return _shaped(column, field, batch=batch) if cast else column


def _numbers(name: str, value: Any, field: Field | None) -> Array:
    """Numbers as an array. If they are too large for 64 bits, it is an array of Python's integers."""
    _check_unmasked(name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise SchemaError(f"field {name!r}: the lists in {shown(value, 40)} must be equally long") from None
    except RuntimeError as error:  # From the value's own methods: it may be any sequence.
        raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel: {error}") from None
    if array.dtype.kind in WIDER or (array.dtype.kind == "O" and all(type(number) is int for number in array.flat)):
        return array
    if field is not None:
        raise _misfit(field, value, "")
    raise CodecError(f"field {name!r}: {type(value).__name__} {shown(value, 40)} must be a tensor, an array, a number or a list of them")


def _kind(array: Array) -> str:
    return "i" if array.dtype.kind == "O" else array.dtype.kind


def _default(value: Any, array: Array) -> torch.dtype:
    value = _first(value)
    if isinstance(value, np.generic | np.ndarray) and array.dtype in _OF_NUMPY:
        return _OF_NUMPY[array.dtype]
    return {"b": torch.bool, "f": torch.get_default_dtype(), "c": torch.complex64}.get(_kind(array), torch.int64)


_OF_NUMPY = {NUMPY[dtype]: dtype for dtype in DTYPES.values() if dtype not in RAW}


def _cast(own: torch.Tensor, field: Field) -> torch.Tensor:
    if own.dtype is field.dtype or not (own.dtype in DTYPE_NAMES or own.dtype is torch.complex128):
        return own
    host = own.cpu().resolve_conj().resolve_neg()
    return _converted((host.float() if host.dtype in RAW else host).numpy(), field)


def _shaped(column: torch.Tensor, field: Field, *, batch: bool) -> torch.Tensor:
    """`column` in the field's shape, if only dimensions of 1 differ; else as it is."""
    rows, shape = (column.shape[:1], column.shape[1:]) if batch else ((), column.shape)
    if shape != field.shape and [n for n in shape if n != 1] == [n for n in field.shape if n != 1]:
        return column.reshape((*rows, *field.shape))
    return column


def _converted(source: Array, field: Field) -> torch.Tensor:
    """Numbers as a tensor of the field's dtype.

    Raises:
        SchemaError: one of them does not fit.
    """
    target = NUMPY[field.dtype]
    if source.dtype == target and field.dtype not in RAW:
        return _of_array(field.name, source)
    _check(source, _FITS[target.kind](source, field.dtype), field)
    with np.errstate(all="ignore"):  # Small numbers may become 0.
        return torch.from_numpy(np.asarray(source.astype(target))).to(field.dtype)


def _as_float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _check(source: Array, fits: Array, field: Field) -> None:
    if not fits.all():
        raise _misfit(field, source[~fits].flat[0] if source.ndim else source[()], _rule(field.dtype))


def _misfit(field: Field, value: Any, rule: str) -> SchemaError:
    number = value.item() if isinstance(value, np.generic) else value
    return SchemaError(f"field {field.name!r}: expected {field} in every row, got {type(number).__name__} {shown(number, 40)}{rule}")


def _rule(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return ": it must be 0 or 1"
    if dtype not in LIMITS:
        return f": it must be a whole number from {torch.iinfo(dtype).min} to {torch.iinfo(dtype).max}"
    return f": it must be {'' if dtype.is_complex else 'real and '}at most {torch.finfo(dtype).max:.8g} on either side of 0"


def _zero_or_one(source: Array, _dtype: torch.dtype) -> Array:
    return np.asarray((source == 0) | (source == 1), bool)


def _whole_in_range(source: Array, dtype: torch.dtype) -> Array:
    info = torch.iinfo(dtype)
    if source.dtype.kind == "c":
        return np.zeros(source.shape, bool)
    if source.dtype.kind == "b":
        return np.ones(source.shape, bool)
    if source.dtype.kind == "f":
        source = source.astype(np.float64)
        # The sum is a power of two, and so exact as a float.
        return np.asarray((source == np.floor(source)) & (source >= float(info.min)) & (source < float(info.max + 1)), bool)
    return np.asarray((source >= info.min) & (source <= info.max), bool)


def _finite_as(source: Array, dtype: torch.dtype) -> Array:
    """For each number, whether it is finite as `dtype`, or was not finite before. F8_E4M3 has a nan, but no inf."""
    if source.dtype.kind == "c":
        if not dtype.is_complex:
            return np.zeros(source.shape, bool)
        return np.asarray(_finite_as(source.real, dtype) & _finite_as(source.imag, dtype), bool)
    if source.dtype.kind == "O":
        return np.vectorize(lambda number: _as_float(abs(number)) < LIMITS[dtype], otypes=[bool])(source)  # type: ignore[no-any-return]
    special = np.isnan(source) if dtype is torch.float8_e4m3fn else ~np.isfinite(source)
    with np.errstate(all="ignore"):
        wide = source.astype(NUMPY[dtype] if dtype in RAW else np.float64)  # It is rounded to this dtype on its way.
    return np.asarray((np.abs(wide) < LIMITS[dtype]) | special, bool)


_FITS: dict[str, Callable[[Array, torch.dtype], Array]] = {
    "b": _zero_or_one,
    "i": _whole_in_range,
    "u": _whole_in_range,
    "f": _finite_as,
    "c": _finite_as,
}
