"""What the service counts about itself, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one service.

    Args:
        waiting: tells how many texts are accepted and not encoded yet.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "biencoder_requests", "Requests, by path and HTTP status.", ("path", "status"), registry=own
        )
        self._seconds = Histogram(
            "biencoder_request_seconds", "From a request to its answer.", ("path",), buckets=SECONDS, registry=own
        )
        self._refusals = Counter(
            "biencoder_refusals", "Requests without room in the queue (429), by what was full.", ("full",), registry=own
        )
        self._texts = Counter("biencoder_texts", "Texts encoded.", registry=own)
        self._tokens = Counter("biencoder_tokens", "Tokens encoded.", registry=own)
        self._batches = Histogram("biencoder_batch_texts", "Texts encoded together.", buckets=TEXTS, registry=own)
        queue = Gauge("biencoder_queue_texts", "Texts accepted and not encoded yet.", registry=own)
        queue.set_function(waiting)
        ProcessCollector(registry=own)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, full: str) -> None:
        """Count a request for which there was no room, by what was full."""
        self._refusals.labels(full).inc()

    def encoded(self, texts: int, tokens: int) -> None:
        """Count a batch."""
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        self._batches.observe(texts)

    def response(self) -> Response:
        """All figures in Prometheus' text format."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
