"""Which scopes allow a call, any one of them; what is not named here is for administrators."""

import re

from services.common.identity import Scope

_GATEWAY = "aimass.gateway.v1.GatewayService"
_INFERENCE = "inference.GRPCInferenceService"
_TRAINER = "aimass.trainer.v1"

_NONE = frozenset[Scope]()
_PREDICT, _FEEDBACK, _TRAIN, _ADMIN = (frozenset({scope}) for scope in Scope)
_LOOP = _FEEDBACK | _TRAIN | _ADMIN
"""Of whoever works on the model. Somebody who may only ask it is not told how it is judged while it is."""

INNER = frozenset({f"{_TRAINER}.AccessService/WatchKeys"})
"""Methods that are spoken behind the gateway only, though their service is offered."""
SCOPES: dict[str, frozenset[Scope]] = {
    f"{_GATEWAY}/ListModels": _NONE,
    f"{_GATEWAY}/Predict": _PREDICT,
    f"{_GATEWAY}/PredictStream": _PREDICT,
    f"{_GATEWAY}/SendFeedback": _FEEDBACK,
    _INFERENCE: _PREDICT,
    f"{_INFERENCE}/RepositoryModelLoad": _ADMIN,
    f"{_INFERENCE}/RepositoryModelUnload": _ADMIN,
    f"{_TRAINER}.FeedbackService": _FEEDBACK,  # the trainer shows the queue to the trusted alone
    f"{_TRAINER}.FeedbackService/ExportFeedback": _ADMIN,
    f"{_TRAINER}.TrainingService": _TRAIN,
    f"{_TRAINER}.DataService": _TRAIN,
    f"{_TRAINER}.LoopService/GetLoop": _LOOP,
    f"{_TRAINER}.LoopService/ListEvents": _LOOP,
    f"{_TRAINER}.LoopService/WatchEvents": _LOOP,
    f"{_TRAINER}.LoopService/TriggerCycle": _TRAIN,
    f"{_TRAINER}.LoopService/ProposeVersion": _TRAIN,
    f"{_TRAINER}.LoopService/GetAnalysis": _TRAIN,
}
"""Scopes by method, or by service for those of its methods that are not named; empty where none is needed."""

_PATHS: list[tuple[str, re.Pattern[str], frozenset[Scope]]] = [
    (methods, re.compile(path), scopes)
    for methods, path, scopes in (
        ("GET HEAD", r"/|/page(/.*)?|/openapi\.json|/v2/health/(live|ready)", _NONE),
        ("GET", r"/v1/models", _NONE),
        ("GET", r"/v1/models/[^/]+/loop(/events)?", _LOOP),
        ("GET", r"/v1/models/[^/]+/analysis", _TRAIN),
        ("POST", r"/v1/models/[^/]+/predict", _PREDICT),
        ("POST", r"/v1/predictions/[^/]+/feedback", _FEEDBACK),
        ("GET", r"/v1/models/[^/]+/observations", _FEEDBACK),
        ("GET", r"/v1/observations/[^/]+/image", _FEEDBACK),
        ("POST", r"/v1/observations/[^/]+/review", _FEEDBACK),
        ("POST", r"/v1/models/[^/]+/loop/(trigger|propose)", _TRAIN),
        ("POST", r"/v2/repository/models/[^/]+/(load|unload)", _ADMIN),
        ("GET POST", r"/v2(/.*)?", _PREDICT),
    )
]
"""The first that fits counts."""
PUBLIC_PATHS = _PATHS[0][1]
"""What says nothing of models or persons: the page's own files, and health, for load balancers that have no key."""


def scopes_of_method(method: str) -> frozenset[Scope]:
    """Return the scopes of which a gRPC *method*, `/package.Service/Method`, needs one; empty where it needs none."""
    name = method.lstrip("/")
    if name in SCOPES:
        return SCOPES[name]
    return SCOPES.get(name.rpartition("/")[0], _ADMIN)


def scopes_of_request(method: str, path: str) -> frozenset[Scope]:
    """Return the scopes of which an HTTP request needs one; empty where it needs none."""
    for methods, pattern, scopes in _PATHS:
        if method in methods.split() and pattern.fullmatch(path):
            return scopes
    return _ADMIN
