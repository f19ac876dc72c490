"""Checks the statistics that perf_analyzer computes with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.refusals import UNKNOWN, Code, judged
from aimass.oip_check.server import Server, Unmet
from aimass.open_inference import grpc_service_pb2 as pb

REQUESTS = 3
READINGS = 20
"""A server may count just after it answered: readings that differ from what is expected are repeated."""


@dataclass(frozen=True)
class Counts:
    """Counters of a model, summed over its versions."""

    queue: int
    success: int
    inferences: int
    computes: tuple[int, int, int]


def _counts(server: Server) -> Counts:
    reply = server.call("ModelStatistics", pb.ModelStatisticsRequest(name=server.model))
    if not reply.ok:
        raise Unmet("needs ModelStatistics, which failed: see statistics")
    if not reply.message.model_stats:
        raise Unmet("needs an entry of the model: see statistics-entry")
    return _summed(reply.message.model_stats)


def _summed(entries: Iterable[pb.ModelStatistics]) -> Counts:
    stats = [(each.inference_count, each.inference_stats) for each in entries]
    return Counts(
        queue=sum(each.queue.count for _, each in stats),
        success=sum(each.success.count for _, each in stats),
        inferences=sum(count for count, _ in stats),
        computes=(
            sum(each.compute_input.count for _, each in stats),
            sum(each.compute_infer.count for _, each in stats),
            sum(each.compute_output.count for _, each in stats),
        ),
    )


def _rises(of: Callable[[Counts], int]) -> Callable[[Server], Outcome]:
    """Return a check whether a counter rises by the number of requests, or by more where others ask too."""

    def run(server: Server) -> Outcome:
        before = of(_counts_before_requests(server))
        for _ in range(READINGS):
            rise = of(_counts(server)) - before
            if rise >= REQUESTS:
                return ok(f"up by {rise} after {REQUESTS} requests")
        return breaks(f"up by {rise} after {REQUESTS} requests")

    return run


def _counts_before_requests(server: Server) -> Counts:
    _need_listed(server)
    server.need_answer()
    before = _counts(server)
    for _ in range(REQUESTS):
        server.call("ModelInfer", server.request())
    return before


def _need_listed(server: Server) -> None:
    if "statistics" not in server.extensions:
        raise Unmet("not listed")


def _answers(server: Server) -> Outcome:
    if "statistics" not in server.extensions:
        return skipped("not listed; perf_analyzer then runs without a server-side breakdown")
    return ok("an answer") if server.statistics_reply.ok else breaks(f"listed, but {server.statistics_reply}")


def _entry(server: Server) -> Outcome:
    _need_listed(server)
    if not server.statistics_reply.ok:
        raise Unmet("needs ModelStatistics, which failed: see statistics")
    names = [each.name for each in server.statistics_reply.message.model_stats]
    if server.model not in names:
        return breaks(f"no entry of the model, {len(names)} others" if names else "model_stats is empty")
    return ok(f"{names.count(server.model)} versions")


def _computes(server: Server) -> Outcome:
    before = _counts_before_requests(server).computes
    for _ in range(READINGS):
        rises = [after - own for after, own in zip(_counts(server).computes, before, strict=True)]
        if len(set(rises)) == 1:
            return ok(f"up by {rises[0]} each")
    return breaks("input up by {}, infer by {}, output by {}".format(*rises))


def _all_models(server: Server) -> Outcome:
    _need_listed(server)
    reply = server.call("ModelStatistics", pb.ModelStatisticsRequest())
    if not reply.ok:
        return warns(str(reply))
    names = {each.name for each in reply.message.model_stats}
    return ok(f"{len(names)} models") if server.model in names else warns(f"{len(names)} models, not this one")


def _unknown(server: Server) -> Outcome:
    _need_listed(server)
    if not server.statistics_reply.ok:
        raise Unmet("needs ModelStatistics, which failed: see statistics")
    return judged(server.call("ModelStatistics", pb.ModelStatisticsRequest(name=UNKNOWN)), Code.NOT_FOUND)


CHECKS = (
    Check(
        "statistics",
        "ModelStatistics, if `statistics` is listed",
        "perf_analyzer asks before and after each window where the extension is listed.",
        {"perf_analyzer": "ends with an error", "tritonclient": "get_inference_statistics raises"},
        _answers,
    ),
    Check(
        "statistics-entry",
        "an entry of the model in model_stats",
        "perf_analyzer looks for the version that it measures.",
        {"perf_analyzer": "ends with exit code 99: failed to find the requested model version"},
        _entry,
    ),
    Check(
        "statistics-queue-count",
        f"queue.count before and after {REQUESTS} requests",
        "perf_analyzer takes the version whose queue.count went up; every request counts, also one that didn't wait.",
        {"perf_analyzer": "ends with exit code 99: failed to find the requested model version"},
        _rises(lambda counts: counts.queue),
    ),
    Check(
        "statistics-success-count",
        f"success.count before and after {REQUESTS} requests",
        "Latencies are sums divided by this count.",
        {"perf_analyzer": "prints a wrong server-side breakdown"},
        _rises(lambda counts: counts.success),
    ),
    Check(
        "statistics-inference-count",
        f"inference_count before and after {REQUESTS} requests",
        "It counts samples; divided by execution_count it is the mean batch size.",
        {"perf_analyzer and model_analyzer": "print a wrong mean batch size"},
        _rises(lambda counts: counts.inferences),
    ),
    Check(
        "statistics-compute-counts",
        f"counts of compute_input, _infer and _output before and after {REQUESTS} requests",
        "perf_analyzer demands that they rise equally, and does not catch what that throws.",
        {"perf_analyzer": "aborts with exit code 134: Server side statistics compute counts must be the same."},
        _computes,
    ),
    Check(
        "statistics-all-models",
        "ModelStatistics without a name",
        "An empty name stands for all models.",
        {"perf_analyzer": "cannot break an ensemble down", "tritonclient": "get_inference_statistics() is incomplete"},
        _all_models,
    ),
    Check(
        "statistics-unknown-model",
        "ModelStatistics of a model that isn't there",
        "NOT_FOUND tells a misspelt name from a broken server.",
        {"tritonclient": "raises a fault of the server's for a misspelt name"},
        _unknown,
    ),
)
