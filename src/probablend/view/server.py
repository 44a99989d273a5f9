"""The viewer's server: one page, its tiles and its numbers, for those who know the token."""

import contextlib
import math
import secrets
import socket
import webbrowser
from collections.abc import Callable, Mapping
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from probablend.catalog import PROVENANCE, sky_positions
from probablend.view.layers import View
from probablend.view.selection import COLUMNS, EXPORTS, card, export, find_position, pack
from probablend.view.tiles import PALETTES, TILE, Layer, legend

__all__ = ["make_app", "serve"]

_STATIC = Path(__file__).parent / "static"
_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_KEEP = {"Cache-Control": "private, max-age=86400"}  # addresses of tiles name the run


class Guard:
    """Lets only those in who know the token, by way of this machine's own name.

    The token comes with the first address and goes into a cookie. A page of another site can
    make the browser ask, under a name that it has pointed here (DNS rebinding), or without the
    cookie: both are refused.

    Parameters
    ----------
    app : ASGI application
        What is guarded.
    token : str
        The secret.
    cookie : str
        Name of the cookie: cookies are shared by all ports of a machine.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self.app, self.token, self.cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        fresh = self._knows(given)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(_HEADERS)
                answer.setdefault("Cache-Control", "no-store")
                if fresh:
                    answer.append(
                        "Set-Cookie",
                        f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict",
                    )
            await send(message)

        app: ASGIApp = self.app
        if headers.get("host", "").rsplit(":", 1)[0] not in _HOSTS:
            fresh, app = False, PlainTextResponse("this address is not served\n", 421)
        elif not (fresh or self._knows(_cookie(headers, self.cookie))):
            app = PlainTextResponse("open the address that 'probablend view' printed\n", 403)
        await app(scope, receive, send_safely)

    def _knows(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        return SimpleCookie(headers.get("cookie", ""))[name].value
    except (KeyError, ValueError):
        return ""


def make_app(view: View, *, token: str, port: int) -> ASGIApp:
    """The viewer as an ASGI application; it changes nothing.

    Parameters
    ----------
    view : View
        What is shown.
    token : str
        Without which nothing is answered.
    port : int
        Where it will be served.
    """
    products = view.products
    run = secrets.token_hex(4)  # tiles of another run may be in the browser's memory

    def index(_: Request) -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-store"})

    def info(_: Request) -> Response:
        return JSONResponse(_describe(view, run))

    def tile(request: Request) -> Response:
        at = request.path_params
        png = view.pyramids[at["layer"]].tile(at["level"], at["column"], at["row"])
        return Response(png, media_type="image/png", headers=_KEEP)

    def colours(request: Request) -> Response:
        if (name := request.path_params["palette"]) not in PALETTES:
            raise KeyError(f"there is no palette {name}")
        return Response(legend(name), media_type="image/png", headers=_KEEP)

    def catalogue(_: Request) -> Response:
        return Response(pack(products), media_type="application/octet-stream")

    def source(request: Request) -> Response:
        return JSONResponse(card(products, request.path_params["source_id"]))

    def pixel(request: Request) -> Response:
        x, y = (_number(request, name) for name in "xy")
        return JSONResponse(_read_pixel(view, x, y))

    def goto(request: Request) -> Response:
        query = request.query_params
        x, y = find_position(
            query.get("q", ""), query.get("frame", ""), products.wcs, products.shape_yx
        )
        return JSONResponse({"x": x, "y": y})

    def download(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in EXPORTS:
            raise KeyError(f"there is no export {kind}")
        data = export(products, _number(request, "threshold"), kind)
        named = {"Content-Disposition": f'attachment; filename="selection.{kind}"'}
        return Response(data, media_type=EXPORTS[kind], headers=named)

    app = Starlette(
        routes=[
            Route("/", index),
            Route("/info", info),
            Route("/tiles/{layer}/{level:int}/{column:int}_{row:int}.png", tile),
            Route("/legend/{palette}.png", colours),
            Route("/catalogue", catalogue),
            Route("/source/{source_id:int}", source),
            Route("/pixel", pixel),
            Route("/goto", goto),
            Route("/selection.{kind}", download),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        exception_handlers={KeyError: _refuse(404), ValueError: _refuse(400)},
    )
    return Guard(app, token, f"probablend-{port}")


def _refuse(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error.args[0] if error.args else error)}, status)

    return answer


def _number(request: Request, name: str) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number; got {text!r}")
    return number


def _describe(view: View, run: str) -> dict[str, Any]:
    """What the page must know before it shows anything."""
    products = view.products
    n_y, n_x = products.shape_yx
    layers = [_describe_layer(p.layer) for p in view.pyramids.values()]
    header = products.header
    return {
        "run": run,
        "folder": str(products.folder),
        "image": None if view.image is None else str(view.image),
        "width": n_x,
        "height": n_y,
        "tile": TILE,
        "levels": next(iter(view.pyramids.values())).n_levels,
        "layers": [layer for layer in layers if not layer["name"].startswith("sample-")],
        "samples": [layer for layer in layers if layer["name"].startswith("sample-")],
        "columns": COLUMNS,
        "sources": len(products.catalog),
        "draws": products.posterior is not None,
        "sky": products.wcs is not None,
        "provenance": [
            [said, str(header[key])]
            for key, said in PROVENANCE.values()
            if header.get(key, "") != ""
        ],
    }


def _describe_layer(layer: Layer) -> Mapping[str, Any]:
    return {
        "name": layer.name,
        "title": layer.title,
        "palette": layer.palette,
        "ends": layer.ends,
    }


def _read_pixel(view: View, x: float, y: float) -> dict[str, float | None]:
    """What every layer but the samples says of a pixel, and where it is in the sky."""
    n_y, n_x = view.products.shape_yx
    row, column = math.floor(y + 0.5), math.floor(x + 0.5)
    if not (0 <= row < n_y and 0 <= column < n_x):
        raise ValueError(f"x = {x:g}, y = {y:g} lies outside the image")
    said: dict[str, float | None] = {}
    for name, pyramid in view.pyramids.items():
        if not name.startswith("sample-"):
            value = float(pyramid.layer.read(slice(row, row + 1), slice(column, column + 1))[0, 0])
            said[name] = value if math.isfinite(value) else None
    if (wcs := view.products.wcs) is not None:
        ra, dec = sky_positions(np.array([x]), np.array([y]), wcs)
        for name, values in (("ra", ra), ("dec", dec)):
            said[name] = float(values[0]) if np.isfinite(values[0]) else None
    return said


def serve(
    view: View, *, port: int = 0, open_browser: bool = True, tell: Callable[[str], Any]
) -> None:
    """Serve the viewer on this machine until it is interrupted.

    Parameters
    ----------
    view : View
        What is shown.
    port : int
        0 takes any that is free.
    open_browser : bool
        Whether to open the page.
    tell : callable
        Told the address of the page, with its token.

    Raises
    ------
    OSError
        If the port is taken.
    """
    token = secrets.token_urlsafe(32)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} cannot be used ({error.strerror}): choose another"
            ) from error
        listener.listen()
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/?token={token}"
        tell(address)
        app = make_app(view, token=token, port=port)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        if open_browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
