"""The pages of `pipeline show`: the runs, and a page for each on which its model can be played with.

They are for the user of this machine only: the server answers to no name but 127.0.0.1 and localhost, so that no other
site's name can be pointed at it. It answers no request that a page of another site sends. Pages load nothing from
anywhere.
"""

import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.artifacts import ArtifactError
from pipeline.pages.charts import gather_curves, make_bars, pick_color
from pipeline.pages.components import make_environment
from pipeline.pages.exhibits import show_together
from pipeline.pages.player import COUNT, Player
from pipeline.pages.results import make_page, make_pages, make_tables
from pipeline.params import Params

HOSTS = ["127.0.0.1", "localhost"]
LOADED = 8  # models in memory
POLICY = (
    "default-src 'none'; script-src 'nonce-{}'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Seed = Annotated[int, Query(ge=0, lt=2**31)]
Index = Annotated[int, Query(ge=0, lt=COUNT)]
Share = Annotated[float, Query(ge=0, le=1)]
Prompt = Annotated[str, Query(min_length=1, max_length=2000)]
Temperature = Annotated[float, Query(ge=0, le=10)]
Mass = Annotated[float, Query(gt=0, le=1)]


def create_app(settings: Params) -> FastAPI:
    """Return the app for the runs of params.yaml."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages(settings)
    app.get("/")(pages.list_runs)
    app.get("/runs/{name}")(pages.play)
    for question in ("gallery", "nearest", "walk", "text"):
        app.get(f"/runs/{{name}}/{question}")(getattr(pages, question))
    app.exception_handler(ArtifactError)(explain)
    app.exception_handler(RequestValidationError)(explain)
    app.exception_handler(HTTPException)(explain)
    app.middleware("http")(refuse_others)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
    return app


async def explain(_: Request, error: Exception) -> Response:
    """Answer bad input with one line."""
    if isinstance(error, HTTPException):
        return PlainTextResponse(str(error.detail), error.status_code)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return PlainTextResponse(f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}", 422)
    return PlainTextResponse(str(error), 422)


async def refuse_others(request: Request, pass_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer no page of another site; a link from there is followed."""
    site, mode = (request.headers.get(f"sec-fetch-{name}", "") for name in ("site", "mode"))
    if site in {"cross-site", "same-site"} and mode != "navigate":
        return PlainTextResponse("Pages of other sites get no answer.", 403)
    return await pass_on(request)


class Pages:
    """What the server answers; each method is a page, or a part of one."""

    def __init__(self, settings: Params) -> None:
        self.settings = settings
        self.environment = make_environment(lambda run: f"/runs/{run}")
        self.lock = threading.Lock()  # one model computes at a time
        self.load = lru_cache(LOADED)(lambda name: Player(name, settings))

    def list_runs(self) -> HTMLResponse:
        """Show all runs, their numbers and curves."""
        pages, runs = make_pages(self.settings), list(self.settings.runs)
        bars = [chart for table in make_tables(pages).values() for chart in make_bars(table, runs)]
        colors = {run: pick_color(runs, run) for run in runs}
        return self.render("show.html", pages=pages, bars=bars, curves=gather_curves(pages), colors=colors)

    def play(self, name: str) -> HTMLResponse:
        """Show the page of a run."""
        with self.lock:
            player = self.find(name)
        if player.compares:  # the first question should not wait for the features of all training data
            threading.Thread(target=self.prepare, args=(player,), daemon=True).start()
        return self.render("play.html", page=make_page(name, self.settings), player=player)

    def gallery(self, request: Request, name: str, seed: Seed = 0) -> HTMLResponse:
        """Draw samples."""
        with self.lock:
            player = self.find(name)
            exhibits = player.show("sample", player.sample(seed, choose(player, request)))
        shown = [show_together(each, f"sample {index + 1} of seed {seed}") for index, each in enumerate(exhibits)]
        return self.render("play.tiles.html", shown=shown, compares=player.compares)

    def nearest(self, request: Request, name: str, index: Index, seed: Seed = 0) -> HTMLResponse:
        """Show the training example nearest to a sample."""
        with self.lock:
            player = self.find(name)
            if not player.compares:
                raise HTTPException(404, f"no feature network compares samples of {name}")
            sample = player.sample(seed, choose(player, request))[index : index + 1]
            exhibits, near = player.find_nearest(sample)
        shown = show_together(exhibits, f"training example nearest to sample {index + 1} of seed {seed}")
        return self.render("play.nearest.html", shown=shown, near=near)

    def walk(self, request: Request, name: str, first: Seed = 0, last: Seed = 1, place: Share = 0.5) -> HTMLResponse:
        """Show a place on the way from one sample to another."""
        with self.lock:
            player = self.find(name)
            if not player.walks:
                raise HTTPException(404, f"{name} has no way between two samples")
            exhibits = player.walk(first, last, place, choose(player, request))
        shown = show_together(exhibits, f"{place:.0%} of the way from seed {first} to {last}")
        return self.render("play.walk.html", shown=shown)

    def text(
        self, name: str, prompt: Prompt, temperature: Temperature, top_p: Mass, seed: Seed = 0
    ) -> StreamingResponse:
        """Send a text, piece by piece."""
        with self.lock:
            player = self.find(name)
            if not player.writes:
                raise HTTPException(404, f"{name} writes no texts")
            pieces = player.write(seed, {"prompt": prompt, "temperature": temperature, "top_p": top_p})
            start = next(pieces)  # refuses a prompt that the model cannot read
        return StreamingResponse(self.stream(start, pieces), media_type="text/plain; charset=utf-8")

    def stream(self, start: str, pieces: Iterator[str]) -> Iterator[str]:
        """Yield the pieces, so that between two of them another page gets its turn."""
        yield start
        while True:
            with self.lock:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def find(self, name: str) -> Player:
        """Return a run's model, loaded; call it with the lock."""
        if name not in self.settings.runs:
            raise HTTPException(404, f"params.yaml has no run {name}; it has {', '.join(self.settings.runs)}")
        return self.load(name)

    def prepare(self, player: Player) -> None:
        """Compute what `nearest` needs."""
        with self.lock:
            _ = player.features

    def render(self, template: str, **values: Any) -> HTMLResponse:
        """Fill in a template."""
        nonce = secrets.token_urlsafe(16)
        text = self.environment.get_template(template).render(nonce=nonce, runs=list(self.settings.runs), **values)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY.format(nonce)})


def choose(player: Player, request: Request) -> dict[str, int]:
    """Return the values that a request asks for, of the fields that the model is given."""
    asked = {choice.name: request.query_params.get(choice.name, "") for choice in player.choices}
    if wrong := [
        f"{name}: expected a whole number, got {value}" for name, value in asked.items() if value.strip("0123456789")
    ]:
        raise HTTPException(422, wrong[0])
    return {name: int(value) for name, value in asked.items() if value}
