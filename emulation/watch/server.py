"""The web server of the page: static files, and one stream of server-sent events for each open page."""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from emulation.watch.live_run import LiveRun
from emulation.watch.page_state import Cursor, update

PAGE = Path(__file__).parent / "page"
FILES = ("watch.css", "watch.js", "charts.js", "draw.js")
POLL_S = 0.5  # between two looks at the files, while a page is open
HEARTBEAT_S = 10.0  # a page that is gone is noticed when something is sent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "unweft_token"
HEADERS = {
    # The chart library writes style elements. All else comes from this server.
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Follower:
    """Reads the run for all open pages together. Without an open page nothing is read.

    `stopping`: whether the server is about to end. Then all streams end.
    """

    def __init__(self, run: LiveRun, stopping: Callable[[], bool]) -> None:
        self.run, self._stopping = run, stopping
        self._read_at = -1.0

    def read(self) -> None:
        """Read what is new, at most every POLL_S."""
        now = time.monotonic()
        if now - self._read_at >= POLL_S * 0.9:
            self._read_at = now
            self.run.read()

    async def events(self) -> AsyncIterator[str]:
        """The events of one page: an update when something is new, a comment when nothing is for long."""
        cursor, sent, sent_at = Cursor(), "", 0.0
        while not self._stopping():
            self.read()
            made = json.dumps(update(self.run, cursor), separators=(",", ":"), allow_nan=False)
            if made != sent:
                yield f"data: {made}\n\n"
                sent, sent_at = made, time.monotonic()
            elif time.monotonic() - sent_at > HEARTBEAT_S:
                yield ": nothing new\n\n"
                sent_at = time.monotonic()
            await asyncio.sleep(POLL_S)


class TokenRequired:
    """Answers 403 to a request without the token, in the query or in the cookie that a first visit sets."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token", request.cookies.get(COOKIE, ""))
        if hmac.compare_digest(given.encode(), self._token.encode()):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("the token is missing or wrong\n", 403)(scope, receive, send)


def make_app(run: LiveRun, token: str, stopping: Callable[[], bool]) -> Starlette:
    """The application. With a token, every request needs it; without, only loopback names are answered."""
    follower = Follower(run, stopping)

    async def index(request: Request) -> Response:
        response = FileResponse(PAGE / "index.html", headers=HEADERS)
        if token:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    async def stream(request: Request) -> Response:
        return StreamingResponse(follower.events(), media_type="text/event-stream", headers=HEADERS)

    guard = (
        Middleware(TokenRequired, token=token)
        if token
        # A page of another origin cannot reach the server through a name that resolves to 127.0.0.1.
        else Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    )
    routes = [Route("/", index), Route("/events", stream)]
    routes += [Route(f"/{name}", _file(PAGE / name)) for name in FILES]
    routes.append(Route("/plotly.min.js", _file(chart_library(), "public, max-age=86400")))
    return Starlette(routes=routes, middleware=[guard])


def _file(path: Path, cache: str = "no-cache") -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return FileResponse(path, headers={**HEADERS, "cache-control": cache})

    return answer


def chart_library() -> Path:
    """plotly.min.js inside the package `plotly`. The package itself is not imported. Raises ImportError."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ImportError("plotly is not installed")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"
