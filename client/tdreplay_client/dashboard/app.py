"""The web application: which address of the page shows what. All of it is read with GET, as JSON, PNG, or the files of `static`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tdreplay.errors import InvalidArgumentError, ReplayError, TableNotFoundError
from tdreplay.limits import check_whole
from tdreplay_client.dashboard.episodes import episode_histograms, episode_page, episode_steps, newest_episodes
from tdreplay_client.dashboard.guard import Guard
from tdreplay_client.dashboard.kept import KeptAnswers
from tdreplay_client.dashboard.limits import HISTORY_SECONDS, PAGE_ROWS, POLL_SECONDS, SAMPLE_ROWS
from tdreplay_client.dashboard.observer import Observer, Seen
from tdreplay_client.dashboard.samples import sampled_histograms
from tdreplay_client.dashboard.server_state import description_to_json, server_to_json
from tdreplay_client.dashboard.tables import RowReader
from tdreplay_client.dashboard.words import in_words, status_of

__all__ = ["dashboard_app"]

STATIC = Path(__file__).parent / "static"
SECONDS = {"histograms": 2.0, "episodes": 1.0}
"""How long an answer is good for, however many pages ask for it."""

UNCHANGING = "private, max-age=3600, immutable"
"""Of a row of one generation of a table: it never changes."""


class Answers:
    """The answers to what pages ask for.

    Args:
        address: Of the server, as it is shown.
        observer: Knows what the tables were like.
        reader: Reads rows.
    """

    def __init__(self, address: str, observer: Observer, reader: RowReader) -> None:
        self._address, self._observer, self._reader, self._kept = address, observer, reader, KeptAnswers()

    def overview(self, request: Request) -> Response:
        """The server, and all tables with their points since a moment."""
        since, observer = _number(request, "since", 0.0), self._observer
        tables = [self._table(seen, since) for seen in observer.tables.values()]
        return _json({**self._head(), "server": server_to_json(observer.status), "tables": tables, "more_tables": observer.more_tables})

    def table(self, request: Request) -> Response:
        """One table, with its points since a moment."""
        return _json({**self._head(), "table": self._table(self._seen(request), _number(request, "since", 0.0))})

    def histograms(self, request: Request) -> Response:
        """Histograms of a table's rows, and of its episodes where it has some."""
        name, most = _table(request), _whole(request, "rows", SAMPLE_ROWS)
        return _json(self._kept.find(("histograms", name, most), SECONDS["histograms"], lambda: self._histograms(name, most)))

    def rows(self, request: Request) -> Response:
        """A page of rows."""
        start, order = _whole(request, "start", None), request.query_params.get("order", "newest")
        return _json(self._reader.page(_table(request), start, _whole(request, "limit", 20), newest_first=order != "oldest"))

    def value(self, request: Request) -> Response:
        """Numbers of one value of a row."""
        row, start = _whole(request, "row", 0), _whole(request, "start", 0)
        return _json(self._reader.value(_table(request), request.query_params.get("field", ""), row, max(0, start)))

    def image(self, request: Request) -> Response:
        """One value of a row as a PNG file."""
        name, layout = request.query_params.get("field", ""), request.query_params.get("layout", "")
        picture = self._reader.picture(_table(request), name, _whole(request, "row", 0), layout)
        return Response(picture, media_type="image/png", headers={"Cache-Control": UNCHANGING})

    def episodes(self, request: Request) -> Response:
        """A page of the list of episodes."""
        return _json(episode_page(self._episodes(_table(request)), _whole(request, "offset", 0), _whole(request, "limit", PAGE_ROWS)))

    def episode(self, request: Request) -> Response:
        """The steps of one episode."""
        return _json(episode_steps(self._reader, _table(request), _episode(request)))

    def _head(self) -> dict[str, Any]:
        return {"address": self._address, "error": self._observer.error, "now": time.time(), "seconds": HISTORY_SECONDS, "interval": POLL_SECONDS}

    def _table(self, seen: Seen, since: float) -> dict[str, Any]:
        return {**description_to_json(seen.description), "points": self._observer.points_since(seen, since)}

    def _seen(self, request: Request) -> Seen:
        """The table as it was seen last; one that is newer than that is looked for now."""
        name = _table(request)
        seen = self._observer.tables.get(name)
        if seen is None and self._observer.error:
            raise TableNotFoundError(name)
        return Seen(self._reader.described(name)) if seen is None else seen

    def _episodes(self, name: str) -> Any:
        return self._kept.find(("episodes", name), SECONDS["episodes"], lambda: newest_episodes(self._reader, name))

    def _histograms(self, name: str, most: int) -> dict[str, Any]:
        of_rows = sampled_histograms(self._reader, name, most)
        seen = self._observer.tables.get(name)
        has_episodes = seen is not None and seen.description.trajectories is not None
        return {**of_rows, "of_episodes": episode_histograms(self._episodes(name)) if has_episodes else None}


def dashboard_app(address: str, observer: Observer, reader: RowReader, names: Collection[str]) -> Starlette:
    """The application.

    Args:
        address: Of the server, as it is shown.
        observer: Knows what the tables were like.
        reader: Reads rows.
        names: The host names by which the dashboard may be reached.
    """
    answers = Answers(address, observer, reader)
    table = "/api/tables/{table}"
    routes = {
        "/api/overview": answers.overview,
        table: answers.table,
        f"{table}/histograms": answers.histograms,
        f"{table}/rows": answers.rows,
        f"{table}/value": answers.value,
        f"{table}/image": answers.image,
        f"{table}/episodes": answers.episodes,
        f"{table}/episodes/{{episode}}": answers.episode,
    }
    return Starlette(
        routes=[
            Route("/", _page),
            *(Route(path, endpoint) for path, endpoint in routes.items()),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, names=names)],
        exception_handlers={ReplayError: _refused},
    )


def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


def _refused(_: Request, error: Any) -> Response:
    return _json({"error": in_words(error)}, status_of(error))


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), status, {"Cache-Control": "no-store"}, "application/json")


def _table(request: Request) -> str:
    return str(request.path_params["table"])


def _number(request: Request, name: str, default: float) -> float:
    return float(_parsed(request, name, float, default))


def _whole(request: Request, name: str, default: Any) -> Any:
    return _parsed(request, name, int, default)


def _episode(request: Request) -> int:
    given = str(request.path_params["episode"])
    return check_whole(_read(given, "episode", int, None), "episode", 0)


def _parsed(request: Request, name: str, kind: Callable[[str], Any], default: Any) -> Any:
    return _read(request.query_params.get(name, ""), name, kind, default)


def _read(given: str, name: str, kind: Callable[[str], Any], default: Any) -> Any:
    try:
        return kind(given) if given else default
    except ValueError:
        raise InvalidArgumentError(f"{name} ({given[:40]!r}) must be a number") from None
