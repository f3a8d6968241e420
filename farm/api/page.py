"""What does a browser get: the dashboard's page, and the files that it is made of?

They are built with the package (`farm/ui/build.py`) and read once, so a path can name nothing else. Every view has an
address of its own, at which the page is the same: what it shows is its program's to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from farm.api.desk import Desk, desk_of
from farm.errors import NotFound

BUILT = Path(__file__).parent.parent / "ui" / "dist"
VIEWS = ("queue", "jobs", "gallery", "sweeps", "datasets", "workers", "settings", "quarantine")
"""First parts of the addresses that are views. `farm/ui/src/lib/route.svelte.ts` has the same."""
FOR_EVER = "public, max-age=31536000, immutable"
"""Cache header of files whose name holds their hash. Source: RFC 8246."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data: {store}; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""No inline script or style, and nothing from elsewhere but pictures, which the store's signed addresses lead to."""


@dataclass(frozen=True)
class File:
    """One built file, plain and packed by gzip."""

    plain: bytes
    packed: bytes | None
    media_type: str


def read_files(folder: Path) -> dict[str, File]:
    """The files in `folder` by their path in it; none where the page was not built."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".gz" and not path.name.startswith("."):
            packed = path.with_name(path.name + ".gz")
            media_type = guess_type(path.name)[0] or "application/octet-stream"
            found[path.relative_to(folder).as_posix()] = File(
                path.read_bytes(), packed.read_bytes() if packed.exists() else None, media_type
            )
    return found


def routes(files: Mapping[str, File]) -> APIRouter:
    """The routes of the page."""
    router = APIRouter(include_in_schema=False, tags=["page"])

    def index(request: Request) -> Response:
        return _index(request, files)

    for path in ("/", *(f"/{view}" for view in VIEWS), "/jobs/{job}", "/datasets/{dataset}", "/quarantine/{case}"):
        router.add_api_route(path, index, methods=["GET", "HEAD"], response_class=Response)

    @router.api_route("/assets/{name}", methods=["GET", "HEAD"], response_class=Response)
    def asset(request: Request, name: str) -> Response:
        return _answer(request, files, f"assets/{name}", {"Cache-Control": FOR_EVER})

    @router.api_route("/icon.svg", methods=["GET", "HEAD"], response_class=Response)
    def icon(request: Request) -> Response:
        return _answer(request, files, "icon.svg", {"Cache-Control": "no-cache"})

    return router


def lost(files: Mapping[str, File]) -> Callable[[Request], Response | None]:
    """What answers a browser at an address that nothing has: the page, which says so; None for other programs."""

    def find(request: Request) -> Response | None:
        asked = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if not asked or "index.html" not in files or request.url.path.startswith(("/api/", "/assets/")):
            return None
        found = _index(request, files)
        found.status_code = 404
        return found

    return find


def _index(request: Request, files: Mapping[str, File]) -> Response:
    headers = {"Content-Security-Policy": policy(desk_of(request)), "Cache-Control": "no-cache"}
    return _answer(request, files, "index.html", headers)


def policy(desk: Desk) -> str:
    """The page's Content-Security-Policy: pictures may come from where signed addresses lead."""
    told = urlsplit(desk.farm.inbox.presign("page"))
    return _POLICY.format(store=f"{told.scheme}://{told.netloc}")


def _answer(request: Request, files: Mapping[str, File], name: str, headers: dict[str, str]) -> Response:
    if name not in files:
        raise NotFound("there is no such file" if files else "the dashboard was not built with this installation")
    found = files[name]
    headers["Vary"] = "Accept-Encoding"
    if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(found.plain, media_type=found.media_type, headers=headers)
