"""The settings as text: a line for each, or a TOML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tdreplay.table_config import TableRequest
from tdreplay_server.config import ServerConfig

__all__ = ["shown_settings", "to_toml"]

NOT_SET = "not set"


def shown_settings(config: ServerConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """The place of each setting and its value, in order. Each table has a place of its own. Files with secrets are shown as paths."""
    for name in ServerConfig.model_fields:
        value = getattr(config, name)
        if isinstance(value, Mapping) and value:
            yield from (((name, table), _inline(_said(request))) for table, request in value.items())
        else:
            yield (name,), NOT_SET if value is None or isinstance(value, Mapping) else _shown(value)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_toml(config: ServerConfig) -> str:
    """A file that gives the same server, wherever it is started: its paths are absolute. Defaults are in it, too."""
    settings = {name: getattr(config, name) for name in ServerConfig.model_fields if name != "config"}
    tables: Mapping[str, TableRequest] = settings.pop("tables") or {}
    lines = [f"{name} = {_value(value)}" for name, value in settings.items() if value is not None]
    for name, request in tables.items():
        lines += ["", f"[tables.{name}]", *(f"{setting} = {_value(value)}" for setting, value in _said(request).items())]
    return "\n".join(lines) + "\n"


def _said(request: TableRequest) -> dict[str, Any]:
    return {setting: value for setting, value in request.to_json().items() if value is not None}


def _value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, Path):
        return _value(str(value.absolute()))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and bools are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name} = {_value(value)}" for name, value in values.items() if value is not None) + "}"
