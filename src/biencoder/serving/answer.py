"""Vectors as the JSON that OpenAI's embeddings endpoint answers with."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is ``content`` as JSON; NumPy arrays are lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def embeddings(vectors: np.ndarray, model: str, tokens: int, *, as_base64: bool) -> Response:
    """The answer to a request.

    Args:
        vectors: ``[N, D]`` float32, finite, in the order of the texts.
        model: the name that clients know the model by.
        tokens: how many the model read for them.
        as_base64: each vector is the base64 of its little-endian float32 numbers, not a list.
    """
    rows = vectors.astype("<f4", copy=False)
    data = [
        {"object": "embedding", "index": index, "embedding": base64.b64encode(row).decode() if as_base64 else row}
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": model, "usage": usage})
