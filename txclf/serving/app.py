"""The HTTP service around a model, built with FastAPI. It does not import Ray.

POST /predict    labels and probabilities, or outputs, of texts
POST /explain    word weights of one text
GET  /model      task, labels, text columns, scores and limits of the model
GET  /healthz    200 if the service can answer, else 503
GET  /metrics    metrics for Prometheus
GET  /docs       the API as a page; /openapi.json for programs
GET  /           a page to try the model
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from txclf._version import __version__
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import shown
from txclf.inference import occlusion, prediction_sets
from txclf.inference.metadata import BundleMetadata
from txclf.inference.occlusion import Row
from txclf.serving.batcher import Answers, Ask, BoundedLane, QueueFull
from txclf.serving.middleware import Metrics, RequestMiddleware, error_body
from txclf.serving.origins import HostPolicy
from txclf.serving.schemas import (
    Columns,
    ErrorResponse,
    ExplainRequest,
    ExplainResponse,
    PredictRequest,
    PredictResponse,
)
from txclf.serving.settings import Limits

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

ASSETS = files("txclf") / "assets"
ERRORS = {
    401: "The token is missing or wrong.",
    403: "The host or the web page is not allowed.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request is invalid; the message names the key.",
    503: "The queue is full or no replica is running. Retry after `Retry-After` seconds.",
    504: "The request timed out.",
}
"""Meaning of the status codes, in the OpenAPI document."""
EXPLAIN_ROWS = 16
"""Rows per call of `/explain`, so that other requests are answered between its calls."""
_MODEL_KEYS = frozenset(
    ("task", "labels", "text_columns", "max_length", "metrics", "rows", "calibration", "thresholds", "generate")
)
"""Keys of `model.json` that `GET /model` returns."""


class Unavailable(Exception):
    """No replica of the model can answer."""


class InvalidRequest(HTTPException):
    """A request that the model cannot answer: status 422."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


@dataclass(frozen=True, kw_only=True)
class PredictionService:
    """HTTP service around one model."""

    name: str
    """Name of the model, shown to users."""
    metadata: BundleMetadata
    ask: Ask
    """Sends rows to the model."""
    limits: Limits
    metrics: Metrics
    token: str | None = None
    """Bearer token that requests must carry; None accepts every request."""
    examples: Sequence[Columns] = ()
    """Rows that the page offers to try."""
    hosts: HostPolicy = field(default_factory=HostPolicy)
    """Hosts and pages whose requests are answered."""
    is_healthy: Callable[[], bool] = lambda: True
    """Returns True if a replica of the model is running."""
    explanations: BoundedLane = field(init=False)
    """Limit on concurrent `/explain` requests, which take as long as many predictions."""

    def __post_init__(self) -> None:
        lane = BoundedLane(self.limits.explanations, self.limits.queued_explanations)
        object.__setattr__(self, "explanations", lane)

    def build_app(self, lifespan: Lifespan | None = None) -> FastAPI:
        """Return the FastAPI application with all routes, error handlers and the request middleware."""
        app = FastAPI(
            title="txclf serve",  # the document needs no token, so it tells nothing about the model
            version=__version__,
            description="Predictions of a text model.",
            lifespan=lifespan,
            docs_url=None,  # FastAPI's own page loads its script from another host
            redoc_url=None,
            redirect_slashes=False,
        )
        self._add_api_routes(app)
        self._add_pages(app)
        _add_error_handlers(app)
        app.add_middleware(
            RequestMiddleware, limits=self.limits, token=self.token, metrics=self.metrics, hosts=self.hosts
        )
        return app

    def _add_api_routes(self, app: FastAPI) -> None:
        errors: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorResponse, "description": meaning}
            for status, meaning in ERRORS.items()
            if status != 401 or self.token is not None
        }
        app.post("/predict", responses={200: {"model": PredictResponse}, **errors}, summary="Predict texts")(
            self.predict
        )
        app.post("/explain", responses={200: {"model": ExplainResponse}, **errors}, summary="Weigh the words")(
            self.explain
        )
        app.get("/model", summary="Describe the model")(self.model)
        app.get("/healthz", summary="Check the health of the service")(self.healthz)
        app.get("/metrics", summary="Get metrics for Prometheus")(self.prometheus_metrics)

    def _add_pages(self, app: FastAPI) -> None:
        app.get("/docs", include_in_schema=False)(self.docs_page)
        app.get("/", include_in_schema=False)(self.try_page)
        app.get("/page/serve.css", include_in_schema=False)(self.stylesheet)
        app.get("/page/serve.js", include_in_schema=False)(self.script)

    # Every docstring of the next five methods is the description of a route in the OpenAPI document.

    async def predict(self, body: PredictRequest) -> Response:
        """Predict one text, a list of texts or rows of text columns."""
        if (body.top or body.probabilities) and not self.metadata.task_spec.has_labels:
            raise InvalidRequest(
                f"`top`, `probabilities`: a `{self.metadata.task}` model has no labels. Remove these keys."
            )
        minimum = self._minimum(body.coverage)
        answers = await self._answer(self._rows_to_predict(body))
        predictions = self._predictions(answers, body)
        if minimum is not None:
            sets = prediction_sets.label_sets(self.metadata, answers.probabilities, minimum)
            predictions = [{**one, "labels_in_set": labels} for one, labels in zip(predictions, sets, strict=True)]
        return JSONResponse({"predictions": predictions})

    async def explain(self, body: ExplainRequest) -> Response:
        """Return the weight of each word for a label, by occlusion."""
        if not self.metadata.task_spec.has_labels:
            raise InvalidRequest(
                f"`/explain`: a `{self.metadata.task}` model has no labels to explain. Use `POST /predict`."
            )
        if body.label is not None and body.label not in self.metadata.labels:
            raise InvalidRequest(
                f"`label`: the model has no label `{shown(body.label)}`. Use one that `GET /model` lists."
            )
        row = self._row(body.row, "row") if body.row is not None else self._single_text(body.text or "", "text")
        spans = occlusion.split_row(row)
        rows = [row, *occlusion.occluded_rows(row, spans)]
        async with self.explanations:
            parts = [await self._answer(rows[i : i + EXPLAIN_ROWS]) for i in range(0, len(rows), EXPLAIN_ROWS)]
        probabilities = np.concatenate([part.probabilities for part in parts])
        label, probability, pieces = occlusion.explanation(self.metadata, row, spans, probabilities, body.label)
        columns = {
            name: [{"text": text, "weight": weight} for text, weight in column] for name, column in pieces.items()
        }
        return JSONResponse({"method": "occlusion", "label": label, "probability": probability, "columns": columns})

    async def model(self) -> Response:
        """Return the task, labels, text columns, scores and limits of the model."""
        limits = self.limits
        spec = self.metadata.task_spec
        return JSONResponse(
            {
                "name": self.name,
                "txclf_version": __version__,
                "limits": {
                    "body_bytes": limits.body_bytes,
                    "texts": limits.texts,
                    "characters": limits.characters,
                    "seconds": limits.seconds,
                },
                "examples": list(self.examples),
                "is_multilabel": spec.is_multilabel,
                "is_seq2seq": spec.is_seq2seq,
                **self.metadata.model_dump(mode="json", include=set(_MODEL_KEYS)),
            }
        )

    async def healthz(self) -> Response:
        """Return status 200 if the model can answer, else 503."""
        if not self.is_healthy():
            return _error(503, "no replica of the model is running. Retry in a second.", {"retry-after": "1"})
        return JSONResponse({"status": "ok"})

    async def prometheus_metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def docs_page(self, request: Request) -> Response:
        return _render("docs.html", api=request.app.openapi(), dump=_dump)

    async def try_page(self) -> Response:
        return _render("serve.html", txclf_version=__version__)

    async def stylesheet(self) -> Response:
        return Response(_asset("report.css") + _asset("serve.css"), media_type="text/css")

    async def script(self) -> Response:
        return Response(_asset("serve.js"), media_type="text/javascript")

    async def _answer(self, rows: Sequence[Row]) -> Answers:
        answers = await self.ask(rows)
        self.metrics.texts.inc(len(rows))
        self.metrics.batch.observe(answers.batch_rows)
        self.metrics.model_seconds.observe(answers.seconds)
        return answers

    def _minimum(self, coverage: float | None) -> float | None:
        """Return the minimum probability in a prediction set. Raises `InvalidRequest` if the model has no sets."""
        try:
            return None if coverage is None else prediction_sets.minimum(self.metadata, coverage)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None

    def _rows_to_predict(self, body: PredictRequest) -> list[Row]:
        """Return the rows of a request. Raises `InvalidRequest` for a row that the model cannot read."""
        if body.rows is not None:
            self._check_count(body.rows, "rows")
            return [self._row(row, f"rows[{i}]") for i, row in enumerate(body.rows)]
        if body.texts is not None:
            self._check_count(body.texts, "texts")
            return [self._single_text(text, f"texts[{i}]") for i, text in enumerate(body.texts)]
        return [self._single_text(body.text or "", "text")]

    def _check_count(self, items: Sequence[object], key: str) -> None:
        if not items:
            raise InvalidRequest(f"`{key}`: the list is empty. Send at least one text.")
        if len(items) > self.limits.texts:
            raise InvalidRequest(
                f"`{key}`: {len(items):,} texts, at most {self.limits.texts:,} per request. Split the request."
            )

    def _single_text(self, text: str, key: str) -> Row:
        names = self.metadata.text_columns
        if len(names) > 1:
            raise InvalidRequest(f"`{key}`: the model reads several columns ({_quoted(names)}). Send rows of them.")
        return self._checked((text,), key)

    def _row(self, columns: Columns, key: str) -> Row:
        names = self.metadata.text_columns
        unknown = [name for name in columns if name not in names]
        missing = [name for name in names if name not in columns]
        if unknown or missing:
            problem = f"no column `{missing[0]}`" if missing else f"`{shown(unknown[0])}` is no column of the model"
            raise InvalidRequest(f"`{key}`: {problem}. Send the columns {_quoted(names)}.")
        return self._checked(tuple(columns[name] or "" for name in names), key)

    def _checked(self, row: Row, key: str) -> Row:
        if not any(text.strip() for text in row):
            raise InvalidRequest(f"`{key}`: the text is blank. Send at least one word.")
        try:
            "".join(row).encode()
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
            raise InvalidRequest(f"`{key}`: not Unicode, a surrogate pair is incomplete. Fix the escapes.") from None
        count = sum(map(len, row))
        if count > self.limits.characters:
            raise InvalidRequest(
                f"`{key}`: {count:,} characters, at most {self.limits.characters:,} per text. Shorten the text."
            )
        return row

    def _predictions(self, answers: Answers, body: PredictRequest) -> list[dict[str, Any]]:
        """Return the predictions as JSON values."""
        spec, labels = self.metadata.task_spec, self.metadata.labels
        if spec.is_seq2seq:
            return [{"output": output} for output in answers.outputs]
        predictions = []
        for row, row_labels in zip(answers.probabilities, answers.labels, strict=True):
            prediction: dict[str, Any] = {"labels": row_labels}
            if not spec.is_multilabel:
                prediction = {"label": row_labels[0], "probability": float(row.max())}
            if body.top:
                order = np.argsort(-row, kind="stable")[: body.top].tolist()
                prediction["top"] = [{"label": labels[i], "probability": float(row[i])} for i in order]
            if body.probabilities:
                prediction["probabilities"] = dict(zip(labels, row.tolist(), strict=True))
            predictions.append(prediction)
        return predictions


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _error(422, _first_problem(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__ is not None:  # the body, which FastAPI could not parse
            return _error(422, f"the body is not JSON: {_unparsed(error.__cause__)}. Send a JSON object in UTF-8.")
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(DataError)
    async def unreadable(request: Request, error: DataError) -> Response:
        return _error(422, str(getattr(error, "cause", error)))  # Ray wraps the error of a replica

    @app.exception_handler(QueueFull)
    async def queue_full(request: Request, error: QueueFull) -> Response:
        return _error(503, "the queue is full. Retry in a second.", {"retry-after": "1"})

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Unavailable) -> Response:
        return _error(503, str(error), {"retry-after": "5"})


def _unparsed(error: BaseException) -> str:
    """Return why the body could not be parsed."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "a number is too long"


def _first_problem(error: RequestValidationError) -> str:
    """Return the first problem of an invalid body, with its key."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", problem["msg"])
        return f"the body is not JSON: {reason}. Send a JSON object."
    keys = [key for key in problem["loc"] if key != "body"]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{shown(key)}" for key in keys).lstrip(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key. Remove it."
    return f"`{path}`: {message}" if path else message


def _error(status: int, message: str, headers: Any = None) -> Response:
    return Response(error_body(status, message), status, headers, "application/json")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("txclf", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def _render(template: str, **values: Any) -> Response:
    return HTMLResponse(_templates().get_template(template).render(**values))
