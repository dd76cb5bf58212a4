"""Paths of the server in texts of errors: its log has them, and its clients do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PATH", "PrivatePaths"]

PATH = "PATH"
"""What clients read in the place of a path."""
REST = r"(?:/[^\s'\",;:()\[\]]*)?"
ABSOLUTE = re.compile(r"(?<![\w.:/<-])/(?:[^\s'\",;:()\[\]/]+/)+[^\s'\",;:()\[\]/]*")
"""A path of two names or more: no text of ours has anything else that looks like one."""


class PrivatePaths:
    """Takes paths out of texts.

    Args:
        roots: directories whose paths are taken out whatever characters they have.
    """

    def __init__(self, roots: Iterable[Path] = ()) -> None:
        found = sorted({str(path) for root in roots for path in (root.absolute(), root.resolve())} - {"/"}, key=len, reverse=True)
        self._roots = re.compile("|".join(re.escape(root) + REST for root in found)) if found else None

    def hidden(self, text: str, *, own: bool) -> str:
        """`text` without paths. Below the roots there are none; elsewhere a path stays where the text is the client's own, as the name of a table."""
        text = self._roots.sub(PATH, text) if self._roots else text
        return text if own else ABSOLUTE.sub(PATH, text)
