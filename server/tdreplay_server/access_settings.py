"""Rules for the settings that say who may call: which of them go together, and where a server may listen without TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tdreplay.addresses import is_loopback

__all__ = ["AccessSettings", "check_access", "check_reach"]


class AccessSettings(Protocol):
    """Those of the settings that say who may call."""

    @property
    def insecure(self) -> bool:
        """Others may reach the server without TLS."""

    @property
    def cert_file(self) -> Path | None:
        """The server's certificate."""

    @property
    def key_file(self) -> Path | None:
        """Its key."""

    @property
    def trusted_ca_file(self) -> Path | None:
        """What signs the certificates of clients."""

    @property
    def client_cert_auth(self) -> bool:
        """Clients have to show one."""


def check_access(settings: AccessSettings) -> None:
    """Passes where the settings of TLS go together.

    Raises:
        ValueError: they do not; the message says what to set.
    """
    broken = {
        "cert_file and key_file go together: set both, or none": (settings.cert_file is None) != (settings.key_file is None),
        "insecure is for servers without TLS: leave it out, or cert_file": settings.insecure and settings.cert_file is not None,
        "client_cert_auth needs trusted_ca_file, whose certificates sign those of clients": settings.client_cert_auth
        and settings.trusted_ca_file is None,
        "trusted_ca_file is for client_cert_auth: set that too": settings.trusted_ca_file is not None and not settings.client_cert_auth,
        "client_cert_auth needs TLS: set cert_file and key_file": settings.client_cert_auth and settings.cert_file is None,
    }
    for rule, is_broken in broken.items():
        if is_broken:
            raise ValueError(rule)


def check_reach(name: str, address: str | None, settings: AccessSettings) -> None:
    """Passes where nobody reads what goes over an address: only this host reaches it, or there is TLS, or that is what is asked for.

    Raises:
        ValueError: others reach it, and would read along; the message says what to set.
    """
    if address is None or settings.insecure or settings.cert_file is not None or is_loopback(address):
        return
    raise ValueError(
        f"{name} ({address}) is reached by other hosts, which could read and change all that is sent: set cert_file and key_file for TLS,"
        " or insecure where nobody else is on that network, or listen on 127.0.0.1"
    )
