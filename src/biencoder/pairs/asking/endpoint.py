"""An OpenAI-compatible endpoint over the standard library's HTTP: one question put until it is answered or hopeless."""

import email.utils
import http.client
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import orjson

from biencoder.errors import UserError

KEY_VARIABLES = ("BIENCODER_API_KEY", "OPENAI_API_KEY")
ATTEMPTS = 6
BACKOFF = 1.0  # seconds before the second attempt; doubled before each further one
LONGEST_WAIT = 120.0  # seconds that an endpoint may ask for
LARGEST_ANSWER = 16 << 20  # bytes
TEMPERATURE = 0.7  # as in Promptagator (Dai et al. 2023)

_PATH = "/chat/completions"
_TRY_AGAIN = (408, 425, 429)
_THIS_PASSAGE = (400, 413, 422)  # too long, or refused for what it says
_QUOTED = 200  # characters of the endpoint's own words in a message


class Nonsense(Exception):  # noqa: N818 (an answer, not a fault of the program)
    """An answer without a usable text; the message is the kind, ``detail`` what was found.

    Attributes:
        detail: for people.
        paid: whether the endpoint did its work, so that asking again would cost again.
    """

    def __init__(self, kind: str, detail: str, *, paid: bool = True) -> None:
        super().__init__(kind)
        self.detail = detail
        self.paid = paid


class Stopped(Exception):  # noqa: N818 (somebody else's fault)
    """The run ends; this call was not made, or not again."""


class Endpoint:
    """Where questions are written.

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
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, content: str) -> str:
        """The answer to one message. Safe to call from several threads.

        Overload (429), faults of the server (5xx), broken connections and timeouts are met by waiting and asking again,
        twice as long each time and as long as ``Retry-After`` says.

        Raises:
            Nonsense: an answer came, but no text in it.
            Stopped: the event ``stop`` was set meanwhile.
            UserError: the endpoint refuses all calls, or did not answer in `ATTEMPTS` attempts.
        """
        body = orjson.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": content}],
                "temperature": TEMPERATURE,
                "stream": False,
            }
        )
        for attempt in range(ATTEMPTS):
            if self.stop.is_set():
                raise Stopped
            try:
                return self._text(self._post(body))
            except urllib.error.HTTPError as error:
                with error:
                    said, wait = self._refusal(error), _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                said, wait = self._broken(error), None
            if wait is not None and wait > LONGEST_WAIT:
                raise UserError(f"--generator {self.url}: {said}; it wants {wait:.0f} s of rest, start again then")
            if attempt + 1 < ATTEMPTS:
                # Jitter, so that calls refused together do not come back together.
                backoff = BACKOFF * 2**attempt * random.uniform(0.5, 1.0)
                self.stop.wait(max(backoff, wait or 0.0))
        raise UserError(f"--generator {self.url}: no answer in {ATTEMPTS} attempts; the last: {said}")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "biencoder"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + _PATH, body, headers, method="POST")
        deadline = time.monotonic() + self._timeout
        with self._opener.open(request, timeout=self._timeout) as response:
            parts, size = [], 0
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError("timed out")
                if size > LARGEST_ANSWER:
                    raise Nonsense("too long", f"more than {LARGEST_ANSWER:,} bytes")
            if size < int(response.headers.get("Content-Length") or 0):
                raise ConnectionError("the answer was cut off")
        return b"".join(parts)

    def _text(self, body: bytes) -> str:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Nonsense("not JSON", self._quote(body)) from None
        try:
            text: Any = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise Nonsense("no choices", self._quote(body)) from None
        if not isinstance(text, str) or not text.strip():
            raise Nonsense("empty", self._quote(body))
        return self._without_key(text)

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What to say of an error that may pass.

        Raises:
            Nonsense: the endpoint does not take this one message.
            UserError: it takes none.
        """
        try:
            words = self._quote(error.read(4096))
        except (OSError, http.client.HTTPException):
            words = ""
        said = f"{error.code} {self._without_key(str(error.reason or ''))}".strip() + (f": {words}" if words else "")
        if error.code in _TRY_AGAIN or error.code >= 500:
            return said
        if error.code in _THIS_PASSAGE:
            raise Nonsense(f"refused with {error.code}", said, paid=False) from None
        hint = {
            401: f"; the API key is read from {' or '.join(KEY_VARIABLES)}",
            403: f"; the API key is read from {' or '.join(KEY_VARIABLES)}",
            404: "; the address usually ends in /v1, and --generator-model must be a model that it serves",
        }.get(error.code, "")
        raise UserError(f"--generator {self.url}: {said}{hint}") from None

    def _broken(self, error: OSError | http.client.HTTPException) -> str:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"--generator {self.url}: {reason.verify_message or reason}") from None
        if isinstance(reason, TimeoutError):
            return f"no answer in {self._timeout:g} s (--request-timeout)"
        return self._without_key(str(reason)) or type(reason).__name__

    def _quote(self, body: bytes) -> str:
        words = " ".join(self._without_key(body.decode(errors="replace")).split())
        return words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they were given; it must reach neither a file nor the terminal."""
        return text.replace(self._key, "***") if self._key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: followed, it would take the API key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _checked(url: str) -> str:
    address = url.rstrip("/").removesuffix(_PATH)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not address.isascii() or any(character <= " " for character in address):
        raise UserError(f"--generator {url}: is no address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not repeated in the message: it may hold a secret.
        raise UserError(
            "--generator: the address must hold no user, password or query; "
            f"an API key is read from {' or '.join(KEY_VARIABLES)}"
        )
    return address


def _key() -> str:
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable():
                raise UserError(f"{name}: the API key holds characters that no key has")  # without showing them
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
