"""The HTTP service around a model, by FastAPI: what may be asked, and how it is answered. It knows nothing of Ray.

POST /predict    labels and probabilities, or outputs, of texts
POST /explain    which words mattered
GET  /model      what the model is
GET  /healthz    whether it can answer
GET  /metrics    counts, for Prometheus
GET  /docs       this, for people; /openapi.json for programs
GET  /           a page to try it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Annotated, Any, Self

import jinja2
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from txclf._version import __version__
from txclf.inference.metadata import BundleMetadata
from txclf.serving import occlusion
from txclf.serving.batcher import Answers, Ask, QueueFull
from txclf.serving.middleware import Limits, Metrics, RequestMiddleware, error
from txclf.serving.occlusion import Row

ASSETS = files("txclf") / "assets"
Columns = dict[str, str | None]


class Unavailable(Exception):
    """No replica of the model answers."""


class Texts(BaseModel):
    """What to predict: one of `text`, `texts` and `rows`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["some text", "another text"], "top": 3}]}
    )

    text: Annotated[str | None, Field(description="One text.")] = None
    texts: Annotated[list[str] | None, Field(description="Many texts.")] = None
    rows: Annotated[
        list[Columns] | None, Field(description="Rows of text columns: an object each, a text for each column.")
    ] = None
    top: Annotated[int | None, Field(ge=1, description="So many of the likeliest labels, with probabilities.")] = None
    probabilities: Annotated[bool, Field(description="Whether to give the probability of every label.")] = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.text, self.texts, self.rows)) != 1:
            raise ValueError("expected one of `text`, `texts` and `rows`")
        return self


class Explained(BaseModel):
    """What to explain: one of `text` and `row`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "some text"}]})

    text: Annotated[str | None, Field(description="The text.")] = None
    row: Annotated[Columns | None, Field(description="A text for each text column.")] = None
    label: Annotated[str | None, Field(description="The label to explain; by default the likeliest.")] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.row is None):
            raise ValueError("expected one of `text` and `row`")
        return self


class Score(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class Predicted(BaseModel):
    """Of one row; what does not apply to the model or was not asked for is left out."""

    label: Annotated[str | None, Field(description="`classify`: the likeliest.")] = None
    probability: Annotated[float | None, Field(description="`classify`: of `label`.")] = None
    labels: Annotated[
        list[str] | None, Field(description="`multilabel`: those that reach their thresholds, the likeliest first.")
    ] = None
    output: Annotated[str | None, Field(description="`seq2seq`: the text that was made.")] = None
    top: Annotated[list[Score] | None, Field(description="The `top` likeliest.")] = None
    probabilities: Annotated[dict[str, float] | None, Field(description="Of every label.")] = None


class Predictions(BaseModel):
    """In the order of the texts."""

    predictions: list[Predicted]


class Piece(BaseModel):
    """Some characters of a column."""

    text: str
    weight: Annotated[
        float | None,
        Field(description="How far the log-odds of `label` fall without it; above 0 it speaks for the label."),
    ]


class Explanation(BaseModel):
    """Which words mattered, by occlusion: each is left out in turn."""

    method: str
    label: str
    probability: float
    columns: Annotated[dict[str, list[Piece]], Field(description="Each column's text, cut into pieces.")]


class Failure(BaseModel):
    """Of every refusal."""

    status: int
    message: str


class Refused(BaseModel):
    """What every refusal looks like."""

    error: Failure


REASONS = {
    401: "The token is missing or wrong.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request is not as expected; the message names the place.",
    503: "Too many requests wait, or no replica of the model runs: try again after `Retry-After` seconds.",
    504: "No answer in time.",
}


class Problem(HTTPException):
    """A request that cannot be answered as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


def service(
    name: str,
    description: BundleMetadata,
    ask: Ask,
    limits: Limits,
    metrics: Metrics,
    token: str | None = None,
    healthy: Callable[[], bool] = lambda: True,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The whole service of a model that `ask` reaches."""
    app = FastAPI(
        title=f"txclf: {name}",
        version=__version__,
        description=f"A `{description.task}` model, served by txclf.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page fetches its script from another host
        redoc_url=None,
    )
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refused, "description": reason}
        for status, reason in REASONS.items()
        if status != 401 or token is not None
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("txclf", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    style = (ASSETS / "report.css").read_text() + (ASSETS / "serve.css").read_text()
    script = (ASSETS / "serve.js").read_text()

    async def answers(rows: Sequence[Row]) -> Answers:
        found = await ask(rows)
        metrics.texts.inc(len(rows))
        metrics.batch.observe(found.batch_rows)
        metrics.model_seconds.observe(found.seconds)
        return found

    @app.post("/predict", responses={200: {"model": Predictions}, **refusals}, summary="Predict texts")
    async def predict(body: Texts) -> Response:
        if description.task == "seq2seq" and (body.top or body.probabilities):
            raise Problem("`top`, `probabilities`: a `seq2seq` model has no labels")
        if body.rows is not None:
            _few(body.rows, "rows", limits)
            rows = [_row(row, f"rows[{i}]", description, limits) for i, row in enumerate(body.rows)]
        else:
            texts = body.texts if body.texts is not None else [body.text or ""]
            _few(texts, "texts", limits)
            where = "text" if body.texts is None else "texts[{}]"
            rows = [_text(text, where.format(i), description, limits) for i, text in enumerate(texts)]
        found = await answers(rows)
        return JSONResponse({"predictions": _told(description, found, body.top, body.probabilities)})

    @app.post("/explain", responses={200: {"model": Explanation}, **refusals}, summary="Which words mattered")
    async def explain(body: Explained) -> Response:
        if description.task == "seq2seq":
            raise Problem("a `seq2seq` model has no labels whose words could be weighed")
        if body.label is not None and body.label not in description.labels:
            raise Problem(f"`label`: the model has no `{body.label}`: `GET /model` lists its labels")
        row = (
            _row(body.row, "row", description, limits)
            if body.row is not None
            else _text(body.text or "", "text", description, limits)
        )
        parts = occlusion.parts(row)
        found = (await answers([row, *occlusion.without(row, parts)])).probabilities
        column = description.labels.index(body.label) if body.label is not None else int(found[0].argmax())
        probability = float(found[0, column])
        weights: Sequence[float | None] = occlusion.weights(probability, found[1:, column])
        pieces = occlusion.pieces(row, parts, weights or [None] * len(parts))
        return JSONResponse(
            {
                "method": "occlusion",
                "label": description.labels[column],
                "probability": probability,
                "columns": {
                    name: [{"text": text, "weight": weight} for text, weight in column]
                    for name, column in zip(description.text_columns, pieces, strict=True)
                },
            }
        )

    facts = {
        "name": name,
        "txclf_version": __version__,
        "limits": {"body_bytes": limits.body_bytes, "texts": limits.texts, "characters": limits.characters}
        | {"seconds": limits.seconds},
        **description.model_dump(mode="json", include=_SHOWN),
    }

    @app.get("/model", summary="What the model is: task, labels, text columns, scores, limits")
    async def model() -> Response:
        return JSONResponse(facts)

    @app.get("/healthz", summary="Whether it can answer: 200 or 503")
    async def healthz() -> Response:
        if not healthy():
            return _error(503, "no replica of the model runs", {"retry-after": "1"})
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", summary="Counts, in Prometheus' text format")
    async def counts() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(environment.get_template("docs.html").render(api=app.openapi(), dump=_dump))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(environment.get_template("serve.html").render(txclf_version=__version__))

    @app.get("/page/serve.css", include_in_schema=False)
    async def css() -> Response:
        return Response(style, media_type="text/css")

    @app.get("/page/serve.js", include_in_schema=False)
    async def js() -> Response:
        return Response(script, media_type="text/javascript")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        return _error(422, _first(problem))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> Response:
        return _error(problem.status_code, str(problem.detail), problem.headers)

    @app.exception_handler(QueueFull)
    async def busy(request: Request, problem: QueueFull) -> Response:
        return _error(503, "too many requests wait already: try again later", {"retry-after": "1"})

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, problem: Unavailable) -> Response:
        return _error(503, str(problem), {"retry-after": "5"})

    @app.exception_handler(Exception)
    async def failed(request: Request, problem: Exception) -> Response:
        return _error(500, "this is a defect: the log of the server has the details")

    app.add_middleware(RequestMiddleware, limits=limits, token=token, metrics=metrics)
    return app


_SHOWN = {"task", "labels", "text_columns", "max_length", "metrics", "rows", "calibration", "thresholds", "generate"}


def _few(given: Sequence[Any], name: str, limits: Limits) -> None:
    if not given:
        raise Problem(f"`{name}`: empty")
    if len(given) > limits.texts:
        raise Problem(f"`{name}`: {len(given):,}, at most {limits.texts:,} at once")


def _text(text: str, where: str, description: BundleMetadata, limits: Limits) -> Row:
    if len(description.text_columns) > 1:
        names = ", ".join(f"`{name}`" for name in description.text_columns)
        raise Problem(f"`{where}`: the model reads several columns ({names}): send each row as an object of them")
    return _checked((text,), where, limits)


def _row(row: Columns, where: str, description: BundleMetadata, limits: Limits) -> Row:
    names = description.text_columns
    unknown = [name for name in row if name not in names]
    missing = [name for name in names if name not in row]
    if unknown or missing:
        what = f"no column `{missing[0]}`" if missing else f"`{unknown[0]}` is no column of the model"
        raise Problem(f"`{where}`: {what}: expected {', '.join(f'`{name}`' for name in names)}")
    return _checked(tuple(row[name] or "" for name in names), where, limits)


def _checked(row: Row, where: str, limits: Limits) -> Row:
    if not any(text.strip() for text in row):
        raise Problem(f"`{where}`: no text, it is blank")
    try:
        "".join(row).encode()
    except UnicodeEncodeError:  # JSON can name half of a character
        raise Problem(f"`{where}`: not Unicode, it has half of a surrogate pair") from None
    count = sum(map(len, row))
    if count > limits.characters:
        raise Problem(f"`{where}`: {count:,} characters, at most {limits.characters:,}")
    return row


def _told(description: BundleMetadata, found: Answers, top: int | None, probabilities: bool) -> list[dict[str, Any]]:
    """Predictions as JSON has them."""
    if description.task == "seq2seq":
        return [{"output": output} for output in found.outputs]
    labels = description.labels
    told = []
    for row, given in zip(found.probabilities, found.given, strict=True):
        one: dict[str, Any] = {"labels": given}
        if description.task == "classify":
            one = {"label": given[0], "probability": float(row.max())}
        if top:
            order = np.argsort(-row, kind="stable")[:top].tolist()
            one["top"] = [{"label": labels[i], "probability": float(row[i])} for i in order]
        if probabilities:
            one["probabilities"] = dict(zip(labels, row.tolist(), strict=True))
        told.append(one)
    return told


def _first(problem: RequestValidationError) -> str:
    """The first of what is wrong, and where."""
    found = problem.errors()[0]
    if found["type"] == "json_invalid":
        return f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}"
    parts = [part for part in found["loc"] if part != "body"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        message = "unknown key"
    return f"`{place}`: {message}" if place else message


def _error(status: int, message: str, headers: Any = None) -> Response:
    return Response(error(status, message), status, headers, "application/json")


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
