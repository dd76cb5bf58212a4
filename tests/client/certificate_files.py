"""Certificates in files: of an authority, of a stranger, and of what they signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme


class Certificates:
    """Files of two authorities and of what the first one signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority, self.stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = self._written("ca", self.authority.cert_pem), self._written("other", self.stranger.cert_pem)

    def _written(self, name: str, *blobs: Any) -> str:
        file = self._folder / f"{name}.pem"
        file.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(file)

    def pair(self, name: str, authority: trustme.CA | None = None, **options: Any) -> dict[str, str]:
        """The settings cert_file and key_file of a certificate for `name`."""
        made = (authority or self.authority).issue_cert(name, **options)
        name = f"{name}{len(list(self._folder.iterdir()))}"
        return {"cert_file": self._written(f"{name}-cert", *made.cert_chain_pems), "key_file": self._written(f"{name}-key", made.private_key_pem)}
