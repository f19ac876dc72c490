"""Checks the settings of traces and logs; only reads them."""

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped
from aimass.oip_check.server import Reply, Server
from aimass.open_inference import grpc_service_pb2 as pb


def _trace(server: Server) -> Outcome:
    return _judged(server, "trace", "trace_level", server.call("TraceSetting", pb.TraceSettingRequest()))


def _logs(server: Server) -> Outcome:
    return _judged(server, "logging", "log_info", server.call("LogSettings", pb.LogSettingsRequest()))


def _judged(server: Server, extension: str, setting: str, reply: Reply) -> Outcome:
    if extension not in server.extensions:
        return skipped("not listed")
    if not reply.ok:
        return breaks(f"listed, but {reply}")
    names = sorted(reply.message.settings)
    return ok(", ".join(names)) if setting in names else breaks(f"no {setting} in {names}")


CHECKS = (
    Check(
        "trace-setting",
        "TraceSetting without a change",
        "perf_analyzer --trace-level sets it first of all; the answer holds all settings.",
        {"perf_analyzer": "--trace-level can't be used", "tritonclient": "get_trace_settings raises"},
        _trace,
    ),
    Check(
        "log-settings",
        "LogSettings without a change",
        "The answer holds all settings.",
        {"tritonclient": "get_log_settings raises or is incomplete"},
        _logs,
    ),
)
