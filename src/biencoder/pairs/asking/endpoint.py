"""An OpenAI-compatible endpoint: one question is sent until it is answered or there is no hope."""

import email.utils
import os
import random
import ssl
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson

from biencoder.errors import UserError

KEY_VARIABLES = ("BIENCODER_API_KEY", "OPENAI_API_KEY")
ATTEMPTS = 6
BACKOFF = 1.0  # seconds before the second attempt; doubled before each further one
LONGEST_WAIT = 120.0  # seconds that an endpoint may ask for
LARGEST_ANSWER = 16 << 20  # bytes
TEMPERATURE = 0.7  # as in Promptagator (Dai et al. 2023)

_PATH = "/chat/completions"
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "biencoder"}
_TRY_AGAIN = (408, 425, 429)
_THIS_PASSAGE = (400, 413, 422)  # too long, or refused for what it says
_READ_FROM = f"; biencoder reads the API key from {' or '.join(KEY_VARIABLES)}"
_HINTS = {
    401: _READ_FROM,
    403: _READ_FROM,
    404: "; the address usually ends in /v1, and --generator-model must be a model that it serves",
}
_QUOTED = 200  # characters of the endpoint's own words in a message


class UnusableAnswerError(Exception):
    """An answer without a usable text; the message is the kind.

    Attributes:
        detail: what was found, for people.
        paid: whether the endpoint did its work, so that asking again would cost again.
    """

    def __init__(self, kind: str, detail: str, *, paid: bool = True) -> None:
        super().__init__(kind)
        self.detail = detail
        self.paid = paid


class CallCancelledError(Exception):
    """The run ends; this call was not made, or not again."""


class Endpoint:
    """Where questions are written. It may be used from several threads.

    Args:
        url: the address before ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: the name the endpoint knows the model by.
        timeout: seconds from a request to the end of its answer.

    Raises:
        UserError: the address or the API key in the environment cannot be used.
    """

    def __init__(self, url: str, model: str, timeout: float) -> None:
        self.url = _checked(url)
        self.stop = threading.Event()
        self._model = model
        self._timeout = timeout
        self._key = _key()
        headers = _HEADERS | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # Redirects are errors: a client that followed one would send the API key to another host.
        self._client = httpx2.Client(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None),
        )

    def ask(self, content: str) -> str:
        """The answer to one message.

        Overload (429), faults of the server (5xx), broken connections and timeouts are met by waiting and asking again,
        twice as long each time, and as long as ``Retry-After`` says.

        Raises:
            UnusableAnswerError: an answer came, but no text in it.
            CallCancelledError: the event ``stop`` was set meanwhile.
            UserError: the endpoint refuses all calls, or did not answer in `ATTEMPTS` attempts.
        """
        question = {"role": "user", "content": content}
        body = {"model": self._model, "messages": [question], "temperature": TEMPERATURE, "stream": False}
        said = ""
        for attempt in range(ATTEMPTS):
            if self.stop.is_set():
                raise CallCancelledError
            wait = None
            try:
                response, answer = self._post(body)
                if response.is_success:
                    return self._text(answer)
                said, wait = self._refusal(response, answer), _retry_after(response.headers.get("Retry-After"))
            except httpx2.TransportError as error:
                said = self._broken(error)
            if wait is not None and wait > LONGEST_WAIT:
                raise UserError(
                    f"--generator {self.url}: {said}; it asks you to wait {wait:.0f} s; start again after that"
                )
            if attempt + 1 < ATTEMPTS:
                # Jitter, so that calls refused together do not come back together.
                backoff = BACKOFF * 2**attempt * random.uniform(0.5, 1.0)
                self.stop.wait(max(backoff, wait or 0.0))
        raise UserError(f"--generator {self.url}: no answer in {ATTEMPTS} attempts; the last: {said}")

    def _post(self, body: dict[str, Any]) -> tuple[httpx2.Response, bytes]:
        """The response and its body, within the deadline."""
        deadline = time.monotonic() + self._timeout
        with self._client.stream("POST", self.url + _PATH, json=body) as response:
            answer = bytearray()
            for part in response.iter_bytes():
                answer += part
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer took too long")
                if len(answer) > LARGEST_ANSWER:
                    raise UnusableAnswerError("too long", f"more than {LARGEST_ANSWER:,} bytes")
        return response, bytes(answer)

    def _text(self, body: bytes) -> str:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UnusableAnswerError("not JSON", self._quote(body)) from None
        try:
            text: Any = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise UnusableAnswerError("no choices", self._quote(body)) from None
        if not isinstance(text, str) or not text.strip():
            raise UnusableAnswerError("empty", self._quote(body))
        return self._without_key(text)

    def _refusal(self, response: httpx2.Response, body: bytes) -> str:
        """What to say about an error that may pass.

        Raises:
            UnusableAnswerError: the endpoint does not take this one message.
            UserError: it takes none.
        """
        code, words = response.status_code, self._quote(body)
        said = f"{code} {self._without_key(response.reason_phrase)}".strip() + (f": {words}" if words else "")
        if code in _TRY_AGAIN or code >= 500:
            return said
        if code in _THIS_PASSAGE:
            raise UnusableAnswerError(f"refused with {code}", said, paid=False)
        raise UserError(f"--generator {self.url}: {said}{_HINTS.get(code, '')}")

    def _broken(self, error: httpx2.TransportError) -> str:
        """What to say about a connection that failed.

        Raises:
            UserError: the certificate of the endpoint is not valid, which no further attempt mends.
        """
        if isinstance(error, httpx2.TimeoutException):
            return f"no answer in {self._timeout:g} s (--request-timeout)"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise UserError(f"--generator {self.url}: {cause.verify_message or cause}") from None
            cause = cause.__cause__ or cause.__context__
        return self._without_key(str(error)) or type(error).__name__

    def _quote(self, body: bytes) -> str:
        words = " ".join(self._without_key(body.decode(errors="replace")).split())
        return words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they were given; it must reach neither a file nor the terminal."""
        return text.replace(self._key, "***") if self._key else text


def _checked(url: str) -> str:
    address = url.rstrip("/").removesuffix(_PATH)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not address.isascii() or any(character <= " " for character in address):
        raise UserError(f"--generator {url}: is not an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not repeated in the message: it may hold a secret.
        raise UserError(f"--generator: the address must not hold a user, a password or a query{_READ_FROM}")
    return address


def _key() -> str:
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable():
                raise UserError(f"{name}: the API key holds characters that a key cannot have")  # without showing them
            return key
    return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3: a number or a date)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
