"""What a client takes for an address, and whether it is on this host. Light: a health check does without torch."""

from __future__ import annotations

import ipaddress

from tdreplay.addresses import check_address
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown

__all__ = ["check_target", "is_here", "place_of", "proxy_options", "stays_here"]

LISTS = ("ipv4", "ipv6")
SCHEMES = ("dns", *LISTS, "unix", "unix-abstract")


def check_target(address: str) -> str:
    """`address`, where it is HOST:PORT, [IPv6]:PORT or unix:PATH, or one of gRPC's longer forms: dns:///HOST:PORT, ipv4:, ipv6:, unix-abstract:NAME.

    Raises:
        InvalidArgumentError: where it is none of these, with the value and the rule.
    """
    text = address.strip() if isinstance(address, str) else ""
    if text.rstrip("/").lower() in ("", "unix:"):
        raise InvalidArgumentError(f"address ({shown(address)}) must be HOST:PORT, [IPv6]:PORT or unix:PATH")
    scheme, rest = _scheme(text)
    if scheme in ("", "unix") or not rest:
        return check_address(f"unix:{rest}" if scheme else text)
    for place in rest.split(",") if scheme in LISTS else [rest] if scheme == "dns" else []:
        check_address(place)
    return text


def proxy_options(address: str) -> list[tuple[str, int]]:
    """The channel options that keep calls to this host from a proxy that the environment names (``http_proxy``, ``grpc_proxy``): it is for others."""
    return [("grpc.enable_http_proxy", 0)] if is_here(address) else []


def _scheme(address: str) -> tuple[str, str]:
    """The scheme, lower case, and what follows it; empty where there is none of those that are known here."""
    head, colon, rest = address.partition(":")
    scheme = head.lower()
    if not colon or scheme not in SCHEMES or (rest.isdigit() and not scheme.startswith("unix")):  # A host may be called dns.
        return "", address
    if scheme in ("dns", *LISTS) and rest.startswith("//"):
        rest = rest[2:].partition("/")[2]  # What stands before names who resolves it.
    return scheme, rest


def is_here(address: str) -> bool:
    """Whether the address is on this host, as far as it says so itself: loopback, or a Unix socket."""
    scheme, rest = _scheme(address)
    host = rest.split(",")[0].rpartition(":")[0].strip("[]").rstrip(".").lower()
    return scheme.startswith("unix") or host == "localhost" or host.endswith(".localhost") or _is_loopback(host)


def place_of(address: str) -> tuple[str, int]:
    """The host and the port of an address, of the first place where it names several; of a Unix socket its path, and 0."""
    scheme, rest = _scheme(address)
    if scheme.startswith("unix"):
        return ("\0" if scheme == "unix-abstract" else "") + rest.removeprefix("//"), 0
    host, _, port = rest.split(",")[0].rpartition(":")
    return host.strip("[]"), int(port)


def stays_here(address: str) -> bool:
    """Whether nothing that is sent to the address can leave this host: each host that it names is loopback by its number, or is localhost.

    Names are not looked up: whoever answers for them could send a token anywhere. So could a resolver that the address itself names.
    """
    scheme, rest = _scheme(address)
    if scheme.startswith("unix"):
        return True
    if scheme == "dns" and not address.partition(":")[2].startswith("///") and address.partition(":")[2].startswith("//"):
        return False
    return all(_is_surely_loopback(place.rpartition(":")[0].strip("[]").rstrip(".").lower()) for place in rest.split(","))


def _is_surely_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified
