import json
from typing import Any

import pytest

from biencoder.serving.refusal import Refusal
from biencoder.serving.request import Request, Rules, read_request

RULES = Rules(model="mine", dim=32, max_texts=3, max_characters=10, kind="passage")


def read(**fields: Any) -> Request:
    return read_request(json.dumps(fields).encode(), RULES)


def test_what_is_not_said_has_a_default() -> None:
    assert read(input="a") == Request(["a"], "passage", 32, as_base64=False)
    assert read(input=["a"], model=None, input_type=None, encoding_format=None, dimensions=None) == read(input="a")


def test_what_is_said_counts() -> None:
    asked = read(input=["a", "b"], model="mine", input_type="query", encoding_format="base64", dimensions=1, user="me")
    assert asked == Request(["a", "b"], "query", 1, as_base64=True)
    assert read(input="a", input_type="document").kind == "passage"


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "message"),
    [
        ({}, 400, "input", "wrong_type", "input must be a text or a list of texts"),
        ({"input": 3}, 400, "input", "wrong_type", "input must be a text or a list of texts"),
        ({"input": {"a": "b"}}, 400, "input", "wrong_type", "input must be a text or a list of texts"),
        ({"input": []}, 400, "input", "empty_input", "give at least one text"),
        ({"input": ""}, 400, "input", "empty_input", "text 1: has no visible character"),
        ({"input": ["a", " \n"]}, 400, "input", "empty_input", "text 2: has no visible character"),
        ({"input": ["a", None]}, 400, "input", "wrong_type", "text 2: is not a text"),
        ({"input": ["a"] * 4}, 400, "input", "too_many_texts", "has 4 texts, and a request may have 3"),
        ({"input": "a" * 11}, 400, "input", "text_too_long", "has 11 characters, and may have 10"),
        ({"input": [101, 102]}, 400, "input", "token_ids", "check_embedding_ctx_length=False"),
        ({"input": [[101], [102]]}, 400, "input", "token_ids", "token ids are not taken"),
        ({"input": "a", "model": 1}, 400, "model", "wrong_type", "model must be text"),
        ({"input": "a", "model": "other"}, 404, "model", "model_not_found", "the one that is: 'mine'"),
        ({"input": "a", "input_type": "qery"}, 400, "input_type", "wrong_value", "must be one of document, query"),
        ({"input": "a", "input_type": []}, 400, "input_type", "wrong_value", "must be one of document, query"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "wrong_value", "one of float, base64"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "wrong_value", "a whole number from 1 to 32"),
        ({"input": "a", "dimensions": 33}, 400, "dimensions", "wrong_value", "a whole number from 1 to 32"),
        ({"input": "a", "dimensions": 2.0}, 400, "dimensions", "wrong_value", "a whole number from 1 to 32"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "wrong_value", "a whole number from 1 to 32"),
        ({"input": "a", "inputtype": "query"}, 400, "inputtype", "unknown_field", "did you mean input_type?"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], status: int, param: str, code: str, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(**fields)
    assert (refused.value.status, refused.value.param, refused.value.code) == (status, param, code)
    assert message in refused.value.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"input": NaN}', b'{"input": "\\ud800"}', b"[" * 100_000, b'{"input": "\xc3"}']
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="the body is not JSON") as refused:
        read_request(body, RULES)
    assert refused.value.status == 400


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="must be a JSON object"):
        read_request(body, RULES)


def test_a_message_repeats_little_of_a_long_value() -> None:
    for fields in ({"input": "a", "model": "x" * 10**6}, {"input": "a", "y" * 10**6: 1}):
        with pytest.raises(Refusal) as refused:
            read(**fields)
        assert len(refused.value.response().body) < 1000
