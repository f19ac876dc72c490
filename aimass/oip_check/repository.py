"""Checks the model repository; loads a model only where writing is allowed."""

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.refusals import SERVER_FAULTS, UNKNOWN
from aimass.oip_check.server import Server, Unmet
from aimass.open_inference import grpc_service_pb2 as pb

STATES = ("UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING")


def _index(server: Server) -> Outcome:
    reply = server.index
    if reply.missing and "model_repository" not in server.extensions:
        return skipped("not listed")
    if not reply.ok:
        return breaks(f"listed, but {reply}")
    models = reply.message.models
    wrong = sorted({each.state for each in models if each.state not in STATES})
    if wrong:
        return breaks(f"unknown states {', '.join(map(repr, wrong))}")
    bad = sorted({each.version for each in models if each.version and not each.version.isdecimal()})
    if bad:
        return breaks(f"versions that are no integers: {', '.join(map(repr, bad))}")
    return ok(f"{len(models)} entries, {sum(each.state == 'READY' for each in models)} READY")


def _index_names(server: Server) -> Outcome:
    _need_index(server)
    states = [each.state for each in server.index.message.models if each.name == server.model]
    if server.baseline.ok and "READY" not in states:
        return breaks(f"{server.model} answers, but its states are {states}")
    return ok(f"{server.model} is {', '.join(states) or 'not in it'}")


def _index_ready(server: Server) -> Outcome:
    _need_index(server)
    reply = server.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    if not reply.ok:
        return breaks(str(reply))
    others = [f"{each.name} is {each.state}" for each in reply.message.models if each.state != "READY"]
    return breaks(", ".join(others)) if others else ok(f"{len(reply.message.models)} entries")


def _need_index(server: Server) -> None:
    if not server.index.ok:
        raise Unmet("needs RepositoryIndex: see repository-index")


def _load(server: Server) -> Outcome:
    _need_writing(server)
    server.need_answer()
    reply = server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=server.model))
    if not reply.ok:
        return breaks(str(reply)) if reply.missing or reply.code in SERVER_FAULTS else warns(str(reply))
    after = server.call("ModelInfer", server.request())
    return ok("loaded again, and answers") if after.ok else breaks(f"loaded again, then ModelInfer gave {after}")


def _load_unknown(server: Server) -> Outcome:
    _need_writing(server)
    reply = server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=UNKNOWN))
    if reply.ok:
        return breaks("an answer, as if it were there")
    return ok(str(reply)) if UNKNOWN in reply.text else breaks(f"{reply}, which does not name the model")


def _need_writing(server: Server) -> None:
    if "model_repository" not in server.extensions:
        raise Unmet("not listed")
    if not server.write:
        raise Unmet("loads a model; allow it with --write")


CHECKS = (
    Check(
        "repository-index",
        "RepositoryIndex",
        "Clients compare states with Triton's five, and convert versions to integers.",
        {"tritonclient": "get_model_repository_index raises or misleads", "model_analyzer": "cannot start"},
        _index,
    ),
    Check(
        "repository-index-model",
        "the model's own state in RepositoryIndex",
        "A model that answers has a version that is READY.",
        {"tritonclient": "get_model_repository_index misleads"},
        _index_names,
    ),
    Check(
        "repository-index-ready",
        "RepositoryIndex with ready: true",
        "Only models that are READY come.",
        {"tritonclient": "get_model_repository_index misleads"},
        _index_ready,
    ),
    Check(
        "repository-load",
        "RepositoryModelLoad of the model",
        "A model that is loaded again goes on answering.",
        {"tritonclient": "load_model raises", "model_analyzer": "cannot load what it measures"},
        _load,
    ),
    Check(
        "repository-load-unknown",
        "RepositoryModelLoad of a model that isn't there",
        "model_name is field 2; KServe's own message has it as field 1, so a stock client's name arrives empty.",
        {"tritonclient": "load_model loads nothing, or another model than it names"},
        _load_unknown,
    ),
)
