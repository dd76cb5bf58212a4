"""The names of settings in the environment, and what was meant by one that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from tdreplay.errors import InvalidArgumentError

__all__ = ["ENV_PREFIX", "environment_name", "nearest", "unknown_names"]

ENV_PREFIX = "TDREPLAY_"
OTHERS = {"TDREPLAY_BENCH_ENVS", "TDREPLAY_DOCKER", "TDREPLAY_FAILPOINT", "TDREPLAY_KILLS"}
"""Variables of the benchmarks and the tests."""


def environment_name(setting: str) -> str:
    """The variable of the environment that sets it."""
    return f"{ENV_PREFIX}{setting.upper()}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that was probably meant by `name`; None where none is alike."""
    alike = {known.replace("_", ""): known for known in names}
    found = difflib.get_close_matches(name.replace("_", "").replace("-", ""), alike, n=1, cutoff=0.7)
    return alike[found[0]] if found else None


def unknown_names(environment: Iterable[str], settings: Collection[str]) -> list[str]:
    """The variables of tdreplay that set none of `settings`, and are like none: they may be another program's, as Kubernetes' are.

    Raises:
        InvalidArgumentError: one is like a setting, which was probably meant.
    """
    known = {environment_name(setting) for setting in settings} | OTHERS
    unknown = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
    for name in unknown:
        meant = nearest(name[len(ENV_PREFIX) :].lower(), settings)
        if meant is not None:
            raise InvalidArgumentError(f"{name} in the environment is not a setting: {environment_name(meant)} is")
    return unknown
