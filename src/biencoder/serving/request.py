"""The body of a request, checked."""

from dataclasses import dataclass
from typing import Any

import orjson

from biencoder.config.choices import PASSAGE, TEXT_KINDS
from biencoder.config.values import nearest, shown
from biencoder.data.text import is_blank
from biencoder.serving.refusal import Refusal

FIELDS = ("input", "model", "input_type", "encoding_format", "dimensions", "user")
INPUT_TYPES = {"document": PASSAGE} | {kind: kind for kind in TEXT_KINDS}
FORMATS = FLOAT, BASE64 = "float", "base64"
WRONG_TYPE = "wrong_type"


@dataclass(frozen=True)
class Rules:
    """What a request may ask for.

    Attributes:
        model: the name of the model that is served.
        dim: dimensions of its vectors.
        max_texts: of a request.
        max_characters: of a text.
        kind: which prompt stands before the texts when the request does not say.
    """

    model: str
    dim: int
    max_texts: int
    max_characters: int
    kind: str


@dataclass(frozen=True)
class Request:
    """What a client asked for: vectors of ``texts`` under the model's prompt for ``kind``, cut to ``dim``."""

    texts: list[str]
    kind: str
    dim: int
    as_base64: bool


def read_request(body: bytes, rules: Rules) -> Request:
    """What the body asks for.

    Raises:
        Refusal: it is no JSON object, or a field has a value that cannot be used.
    """
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "the body must be a JSON object", code=WRONG_TYPE)
    for name in fields:
        if name not in FIELDS:
            raise Refusal(
                400, f"unknown field {shown(name)!r}{nearest(name, FIELDS)}", param=shown(name), code="unknown_field"
            )
    _check_model(fields.get("model"), rules)
    return Request(
        texts=_texts(fields.get("input"), rules),
        kind=INPUT_TYPES[_choice(fields, "input_type", tuple(INPUT_TYPES), rules.kind)],
        dim=_dimensions(fields.get("dimensions"), rules.dim),
        as_base64=_choice(fields, "encoding_format", FORMATS, FLOAT) == BASE64,
    )


def _check_model(name: Any, rules: Rules) -> None:
    if name is not None and not isinstance(name, str):
        raise Refusal(400, "model must be text", param="model", code=WRONG_TYPE)
    if name is not None and name != rules.model:
        raise no_such_model(name, rules.model)


def no_such_model(name: str, served: str) -> Refusal:
    """The answer to whoever asks for another model than the one that is served."""
    message = f"the model {shown(name)!r} is not served here; the one that is: {served!r}"
    return Refusal(404, message, param="model", code="model_not_found")


def _texts(given: Any, rules: Rules) -> list[str]:
    """The texts of ``input``.

    Token ids are refused: those of another tokenizer, which clients such as LangChain send unasked, would give vectors
    without a meaning, and nobody would notice.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise Refusal(400, "input must be a text or a list of texts", param="input", code=WRONG_TYPE)
    if not texts:
        raise Refusal(400, "input is an empty list; give at least one text", param="input", code="empty_input")
    if len(texts) > rules.max_texts:
        message = f"input has {len(texts)} texts, and a request may have {rules.max_texts}; send them in parts"
        raise Refusal(400, message, param="input", code="too_many_texts")
    for number, text in enumerate(texts, 1):
        _check_text(text, number, rules.max_characters)
    return texts


def _check_text(text: Any, number: int, most: int) -> None:
    if isinstance(text, int | list):
        message = f"input, text {number}: token ids are not taken; send the text (in LangChain: "
        message += "check_embedding_ctx_length=False)"
        raise Refusal(400, message, param="input", code="token_ids")
    if not isinstance(text, str):
        raise Refusal(400, f"input, text {number}: is not a text", param="input", code=WRONG_TYPE)
    if len(text) > most:
        message = f"input, text {number}: has {len(text)} characters, and may have {most}; cut it into passages"
        raise Refusal(400, message, param="input", code="text_too_long")
    if is_blank(text):
        message = f"input, text {number}: has no visible character"
        raise Refusal(400, message, param="input", code="empty_input")


def _choice(fields: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in choices:
        raise Refusal(400, f"{name} must be one of {', '.join(choices)}", param=name, code="wrong_value")
    return value


def _dimensions(value: Any, dim: int) -> int:
    if value is None:
        return dim
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= dim:
        message = f"dimensions must be a whole number from 1 to {dim}"
        raise Refusal(400, message, param="dimensions", code="wrong_value")
    return value
