"""Bodies of requests and responses."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from txclf.core.errors import ConfigError
from txclf.serving import schemas
from txclf.serving.schemas import ExplainRequest, PredictRequest


@pytest.mark.parametrize("body", [{"text": "a"}, {"texts": ["a"]}, {"rows": [{"text": None}]}, {"texts": []}])
def test_predict_request_accepts_one_input(body: dict[str, object]) -> None:
    request = PredictRequest.model_validate(body)
    assert request.model_dump(exclude_unset=True) == body
    assert (request.top, request.probabilities) == (None, False)


@pytest.mark.parametrize("body", [{}, {"text": "a", "rows": []}, {"text": "a", "label": "b"}, {"text": "a", "top": 0}])
def test_predict_request_refuses_other_bodies(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PredictRequest.model_validate(body)


@pytest.mark.parametrize("body", [{}, {"text": "a", "row": {"text": "a"}}, {"texts": ["a"]}])
def test_explain_request_refuses_other_bodies(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExplainRequest.model_validate(body)


def test_examples_are_valid_requests() -> None:
    for model in (PredictRequest, ExplainRequest):
        for example in model.model_json_schema()["examples"]:
            model.model_validate(example)


def test_every_schema_has_a_description() -> None:
    models = [value for value in vars(schemas).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    assert len(models) > 5
    for model in models:
        assert model is BaseModel or model.model_json_schema()["description"]


def test_example_rows_are_texts_or_objects_of_the_columns() -> None:
    assert schemas.example_rows(["some text", '{"a": 1}'], ["text"]) == [{"text": "some text"}, {"text": '{"a": 1}'}]
    assert schemas.example_rows(['{"title": "a", "body": null}'], ["title", "body"]) == [{"title": "a", "body": None}]


@pytest.mark.parametrize("text", ["", " ", "text", "[1]", '{"title": "a"}', '{"title": 1, "body": "b"}', "[" * 10**5])
def test_example_rows_unreadable_example_is_named(text: str) -> None:
    columns = ["text"] if not text.strip() else ["title", "body"]
    with pytest.raises(ConfigError, match=r"--example `.*the model cannot read it. Pass "):
        schemas.example_rows([text], columns)
