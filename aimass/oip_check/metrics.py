"""Checks the figures in Prometheus form, which come over HTTP and not over gRPC."""

import http.client
import re
from urllib.parse import urlsplit

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.server import Server, shortened

NO_METRICS = "none"
"""Stands for a URL where nothing is asked."""
PORT = 8002
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})?\s+\S+(?:\s+-?\d+)?")


def default_url(address: str) -> str:
    """Return where perf_analyzer looks for the metrics of the server at host:port."""
    return f"{address.rpartition('/')[2].rpartition(':')[0]}:{PORT}/metrics"


def _metrics(server: Server) -> Outcome:
    if server.metrics_url == NO_METRICS:
        return skipped("left out by --metrics-url none")
    # Without a name it is the usual port that was asked, and the metrics can be at another.
    fail = breaks if server.metrics_url else warns
    url = server.metrics_url or default_url(server.address)
    try:
        status, text = _get(url, server.timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return fail(f"{url}: {shortened(str(error)) or type(error).__name__}")
    return _judged(text) if status == http.client.OK else fail(f"{url}: status {status}")


def _get(url: str, timeout: float) -> tuple[int, str]:
    """Return status and text; as in perf_analyzer, a URL needs no scheme."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}")
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def _judged(text: str) -> Outcome:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    samples = [_SAMPLE.fullmatch(line.strip()) for line in lines]
    odd = [line for line, sample in zip(lines, samples, strict=True) if sample is None]
    if odd or not lines:
        return warns(f"{shortened(odd[0], 60)!r}, which isn't Prometheus' text" if odd else "an empty text")
    names = {sample[1] for sample in samples if sample is not None}
    triton = {name for name in names if name.startswith("nv_inference_")}
    return ok(f"{len(triton)} figures of Triton's") if triton else warns(f"{len(names)} figures, no nv_inference_*")


CHECKS = (
    Check(
        "metrics",
        "GET of the metrics",
        "perf_analyzer --collect-metrics fetches them while it measures, and needs status 200; it reads nv_gpu_*, and "
        "goes on without them. Triton's dashboards read nv_inference_*.",
        {
            "perf_analyzer --collect-metrics": "ends with exit code 99 where nothing answers at its --metrics-url, or "
            "prints no figures",
            "Prometheus": "has nothing for Triton's dashboards",
        },
        _metrics,
    ),
)
