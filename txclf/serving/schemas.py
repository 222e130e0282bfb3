"""Bodies of requests and responses of the HTTP service. Their descriptions become the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from txclf.core.errors import ConfigError
from txclf.core.text import shown

Columns = dict[str, str | None]
"""One text per text column, by the column's name."""


class PredictRequest(BaseModel):
    """Texts to predict: exactly one of `text`, `texts` and `rows`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["some text", "another text"], "top": 3}]}
    )

    text: Annotated[str | None, Field(description="One text.")] = None
    texts: Annotated[list[str] | None, Field(description="A list of texts.", fail_fast=True)] = None
    rows: Annotated[
        list[Columns] | None,
        Field(description="Rows of text columns: one object per row, one text per column.", fail_fast=True),
    ] = None
    top: Annotated[int | None, Field(ge=1, description="Number of most likely labels to return per text.")] = None
    probabilities: Annotated[bool, Field(description="Return the probability of every label.")] = False
    coverage: Annotated[
        float | None,
        Field(gt=0, le=1, description="Return labels among which the true one is with this probability, such as 0.95."),
    ] = None

    @model_validator(mode="after")
    def _require_one_input(self) -> Self:
        if sum(value is not None for value in (self.text, self.texts, self.rows)) != 1:
            raise ValueError("expected exactly one of `text`, `texts` and `rows`. Remove or add a key.")
        return self


class ExplainRequest(BaseModel):
    """Text to explain: exactly one of `text` and `row`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "some text"}]})

    text: Annotated[str | None, Field(description="The text.")] = None
    row: Annotated[Columns | None, Field(description="One text per text column.")] = None
    label: Annotated[str | None, Field(description="Label to explain. Defaults to the most likely label.")] = None

    @model_validator(mode="after")
    def _require_one_input(self) -> Self:
        if (self.text is None) == (self.row is None):
            raise ValueError("expected exactly one of `text` and `row`. Remove or add a key.")
        return self


class LabelScore(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class TextPrediction(BaseModel):
    """Prediction for one text. Fields that do not apply to the model or were not requested are left out."""

    label: Annotated[str | None, Field(description="`classify`: the most likely label.")] = None
    probability: Annotated[float | None, Field(description="`classify`: probability of `label`.")] = None
    labels: Annotated[
        list[str] | None,
        Field(description="`multilabel`: labels that reach their thresholds, the most likely first."),
    ] = None
    labels_in_set: Annotated[
        list[str] | None,
        Field(description="`classify`: labels among which the true one is with `coverage`, the most likely first."),
    ] = None
    output: Annotated[str | None, Field(description="`seq2seq`: the generated text.")] = None
    top: Annotated[list[LabelScore] | None, Field(description="The `top` most likely labels.")] = None
    probabilities: Annotated[dict[str, float] | None, Field(description="Probability of every label.")] = None


class PredictResponse(BaseModel):
    """Predictions in the order of the texts."""

    predictions: list[TextPrediction]


class WeightedText(BaseModel):
    """Consecutive characters of a column and their weight."""

    text: str
    weight: Annotated[
        float | None,
        Field(
            description="Drop in the log-odds of `label` when this text is left out: positive for text that supports "
            "the label, null for text that is never left out."
        ),
    ]


class ExplainResponse(BaseModel):
    """Word weights by occlusion: each word is left out in turn."""

    method: str
    label: str
    probability: float
    columns: Annotated[
        dict[str, list[WeightedText]], Field(description="Text of each column, split into weighted pieces.")
    ]


class ErrorDetail(BaseModel):
    """Status and message of an error."""

    status: int
    message: str


class ErrorResponse(BaseModel):
    """Body of every error."""

    error: ErrorDetail


def example_rows(texts: Sequence[str], columns: Sequence[str]) -> list[Columns]:
    """Return the rows of examples: texts, or JSON objects of the text columns if there are several.

    Raises `ConfigError` for an example that the model cannot read.
    """
    rows: list[Columns] = []
    for text in texts:
        row: Columns = {columns[0]: text} if len(columns) == 1 else _object(text)
        is_readable = row.keys() == set(columns) and all(one is None or isinstance(one, str) for one in row.values())
        if not is_readable or not any((one or "").strip() for one in row.values()):
            shape = (
                "a text" if len(columns) == 1 else json.dumps(dict.fromkeys(columns, "some text"), ensure_ascii=False)
            )
            raise ConfigError(f"--example `{shown(text)}`: the model cannot read it. Pass {shape}.")
        rows.append(row)
    return rows


def _object(text: str) -> dict[str, Any]:
    """Return a JSON object; an empty one for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
