"""What is behind it when a server cannot be reached, in words that say what to set.

GRPC tells such failures apart in its text alone: all of them have the status UNAVAILABLE.
"""

from __future__ import annotations

from tdreplay.errors import ServerUnavailableError, TLSError
from tdreplay_client.transport.access import Access

__all__ = ["unavailable"]

CA = "name the file with the authority that signed it: TLS(ca_file=...), TDREPLAY_CA_FILE, or ca_file in the profile"
NAME = "connect by a name that it has, or give that name: TLS(server_name=...), TDREPLAY_SERVER_NAME, or server_name in the profile"
CERTAINLY_TLS = (
    ("certificate has expired", "the server's certificate has expired: renew it on the server, and look at the clock of this host"),
    ("certificate is not yet valid", "the server's certificate is not valid yet: look at the clocks of both hosts"),
    ("CERTIFICATE_VERIFY_FAILED", f"the server's certificate is signed by no authority that is trusted here: {CA}"),
    ("Hostname Verification Check failed", f"the server's certificate has another name than the address: {NAME}"),
    ("WRONG_VERSION_NUMBER", "the server speaks no TLS there: leave TLS out (tls=False, TDREPLAY_TLS=false), or ask for the address that has it"),
    ("TSI_INVALID_ARGUMENT", "the files of TLS do not go together: look at ca_file, cert_file and key_file"),
)
"""What gRPC says, and what it means: TLS is set up wrongly at one of the ends."""
CLOSED = ("Socket closed", "Connection reset by peer", "Broken pipe")
"""What gRPC says where the server ended a connection before the first call. TLS may be the reason, and so may be a server that stops."""
OPEN_HINT = "if it speaks TLS, say so: tls=True, TDREPLAY_TLS=true, or a ca_file"
NAMELESS_HINT = (
    "if it asks for a client's certificate, name one: TLS(cert_file=..., key_file=...), TDREPLAY_CLIENT_CERT_FILE and TDREPLAY_CLIENT_KEY_FILE"
)
NAMED_HINT = "it may not trust the client's certificate: its authority must be in the server's --trusted-ca-file"


def unavailable(address: str, text: str, access: Access) -> ServerUnavailableError:
    """The error for a server at `address` of which gRPC says `text`."""
    for said, meaning in CERTAINLY_TLS:
        if said in text and access.tls is not None:
            return TLSError(f"server {address}: {meaning} ({text})")
    hint = f"; {_hint(access)}" if "failed to connect" in text and any(said in text for said in CLOSED) else ""
    return ServerUnavailableError(f"server {address}: {text}{hint}")


def _hint(access: Access) -> str:
    """What may be wrong where the server ends a connection that has just begun."""
    if access.tls is None:
        return OPEN_HINT
    return NAMELESS_HINT if access.tls.cert_file is None else NAMED_HINT
