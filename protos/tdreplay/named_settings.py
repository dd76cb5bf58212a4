"""Settings that are a kind and its numbers, such as a sampler: frozen values with a name, to JSON, TOML and messages and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, cast

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_choice, shown

__all__ = ["NamedSetting", "named_setting"]

N = TypeVar("N", bound="NamedSetting")


@dataclass(frozen=True)
class NamedSetting:
    """A kind of something, and its numbers. Its subclasses check the numbers when they are made.

    Attributes:
        name: The name of the kind, as files, messages and the command line have it.
    """

    name: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The name and the numbers."""
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        numbers = ", ".join(f"{name}={value:g}" for name, value in asdict(self).items())
        return f"{self.name}({numbers})" if numbers else self.name


def named_setting(entries: object, what: str, kinds: Mapping[str, type[N]]) -> N:
    """The setting that `entries` describes: one of `kinds`, a name alone, or a name and numbers as `to_json` gives them.

    Args:
        entries: The setting.
        what: What the setting is, for errors: ``sampler``.
        kinds: Name -> class.

    Raises:
        InvalidArgumentError: there is no such kind, a number breaks its rule, is missing, or is not one that the kind has.
    """
    kind = next((kind for kind in kinds.values() if type(entries) is kind), None)
    if kind is not None:
        return cast("N", entries)
    given = {"name": entries} if isinstance(entries, str) else dict(entries) if isinstance(entries, Mapping) else {}
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise InvalidArgumentError(f"{what} ({shown(entries)}) must be one of {sorted(kinds)}, or such a name and its numbers")
    kind = kinds[check_choice(name, what, kinds)]
    known = {field.name: field.default is MISSING for field in fields(kind)}
    unknown, missing = sorted(given.keys() - known.keys()), sorted(name for name, needed in known.items() if needed and name not in given)
    if unknown or missing:
        wrong = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise InvalidArgumentError(f"{what} {name!r} {wrong}")
    return kind(**given)
