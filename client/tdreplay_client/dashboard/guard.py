"""What surrounds every answer to a browser: whom it answers, and what the browser may do with it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""With every answer. No script, style or image comes from elsewhere or from the page's text, and no other page sees what is here."""

OWN_SITES = ("same-origin", "none")
"""What a browser says of requests of the page itself, and of those that somebody typed (Fetch Metadata)."""


class Guard:
    """Passes requests that only read, and come from the dashboard's own page or from somebody who typed its address.

    A page of another site may have its name changed to this address (DNS rebinding). Its requests then carry that name in Host, so only names that
    are known pass. An IP address cannot be rebound.

    Args:
        app: What answers the requests that pass.
        names: The host names by which the dashboard may be reached, beside localhost.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, frozenset(map(str.lower, names)) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (self._app if refusal is None else refusal)(scope, receive, sent)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("The dashboard only reads: GET is the only method.\n", 405, {"Allow": "GET, HEAD"})
        if not self._is_known(headers.get("host", "")):
            return PlainTextResponse("The dashboard is not known by this host name. tdreplay dashboard --allow-host NAME lets it in.\n", 421)
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("The dashboard answers no page of another site.\n", 403)
        return None

    def _is_known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return name.lower() in self._names or _is_ip_address(name.removeprefix("[").removesuffix("]"))


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
