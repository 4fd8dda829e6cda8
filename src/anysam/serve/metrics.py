"""Numbers for Prometheus: the engine's own, and requests by route and status. No process-wide registry."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from anysam.serve.engine_types import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 60.0)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_GAUGES = {
    "images": "images that are known",
    "ready": "images that can be clicked",
    "queued_encodes": "images that wait to be encoded",
    "running_encodes": "images that are being encoded",
    "waiting_predicts": "prompts that wait to be decoded",
    "everything_running": "everything modes that run",
    "memory_bytes": "bytes of encodings in memory",
    "upload_bytes": "bytes of uploads in memory",
}
_COUNTERS = {
    "encodes_total": "images encoded",
    "failed_encodes_total": "images that could not be encoded",
    "predicts_total": "prompts decoded",
    "everything_total": "everything modes begun",
    "describe_total": "descriptions begun",
    "rejected_total": "requests refused for a full queue",
    "cancelled_total": "requests whose client went away",
    "cache_hits": "encodings found in the store",
    "cache_misses": "encodings not found in the store",
    "encode_seconds": "seconds spent encoding",
    "predict_seconds": "seconds spent decoding",
}


class Metrics:
    """Everything that /metrics shows of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineNumbers(engine))
        self._requests = Counter(
            "anysam_requests_total", "requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "anysam_request_seconds",
            "seconds until the answer's end",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. Methods and routes come from short lists, so that clients cannot make new series."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineNumbers(Collector):
    """Asked when /metrics is, so that the engine counts nothing twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"anysam_{name}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"anysam_{name.removesuffix('_total')}", text, value=getattr(stats, name))
