"""Errors that a client is told about, in the form that clients of OpenAI's API expect."""

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from biencoder.serving.answer import json_response

INVALID = "invalid_request_error"
BUSY = "rate_limit_error"
FAILED = "server_error"


@dataclass
class Refusal(Exception):  # noqa: N818 (it is no error of the server)
    """A request is not answered with vectors.

    Attributes:
        status: the HTTP status.
        message: what was wrong and how to mend it.
        kind: ``type`` of the error object.
        param: the field of the request that is at fault.
        code: a word for programs.
        retry_after: seconds after which the client may come again.
    """

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def response(self) -> Response:
        """The error object, with the headers that belong to its status."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response({"error": error}, self.status, headers)
