"""Which scope a call needs; what is not named here is for administrators."""

import re

from services.common.identity import Scope

_GATEWAY = "aimass.gateway.v1.GatewayService"
_INFERENCE = "inference.GRPCInferenceService"
_TRAINER = "aimass.trainer.v1"

INNER = frozenset({f"{_TRAINER}.AccessService/WatchKeys"})
"""Methods that are spoken behind the gateway only, though their service is offered."""
SCOPES: dict[str, Scope | None] = {
    f"{_GATEWAY}/ListModels": None,
    f"{_GATEWAY}/Predict": Scope.PREDICT,
    f"{_GATEWAY}/PredictStream": Scope.PREDICT,
    f"{_GATEWAY}/SendFeedback": Scope.FEEDBACK,
    _INFERENCE: Scope.PREDICT,
    f"{_INFERENCE}/RepositoryModelLoad": Scope.ADMIN,
    f"{_INFERENCE}/RepositoryModelUnload": Scope.ADMIN,
    f"{_TRAINER}.FeedbackService": Scope.FEEDBACK,  # the trainer shows the queue to the trusted alone
    f"{_TRAINER}.FeedbackService/ExportFeedback": Scope.ADMIN,
    f"{_TRAINER}.TrainingService": Scope.TRAIN,
    f"{_TRAINER}.DataService": Scope.TRAIN,
    f"{_TRAINER}.LoopService/GetLoop": None,
    f"{_TRAINER}.LoopService/ListEvents": None,
    f"{_TRAINER}.LoopService/WatchEvents": None,
    f"{_TRAINER}.LoopService/TriggerCycle": Scope.TRAIN,
    f"{_TRAINER}.LoopService/ProposeVersion": Scope.TRAIN,
    f"{_TRAINER}.LoopService/GetAnalysis": Scope.TRAIN,
}
"""Scope by method, or by service for those of its methods that are not named; None where none is needed."""

_PATHS: list[tuple[str, re.Pattern[str], Scope | None]] = [
    (methods, re.compile(path), scope)
    for methods, path, scope in (
        ("GET HEAD", r"/|/page(/.*)?|/openapi\.json|/v2/health/(live|ready)", None),
        ("GET", r"/v1/models", None),
        ("GET", r"/v1/models/[^/]+/loop(/events)?", None),
        ("GET", r"/v1/models/[^/]+/analysis", Scope.TRAIN),
        ("POST", r"/v1/models/[^/]+/predict", Scope.PREDICT),
        ("POST", r"/v1/predictions/[^/]+/feedback", Scope.FEEDBACK),
        ("GET", r"/v1/models/[^/]+/observations", Scope.FEEDBACK),
        ("GET", r"/v1/observations/[^/]+/image", Scope.FEEDBACK),
        ("POST", r"/v1/observations/[^/]+/review", Scope.FEEDBACK),
        ("POST", r"/v1/models/[^/]+/loop/trigger", Scope.TRAIN),
        ("POST", r"/v2/repository/models/[^/]+/(load|unload)", Scope.ADMIN),
        ("GET POST", r"/v2(/.*)?", Scope.PREDICT),
    )
]
"""The first that fits counts."""
PUBLIC_PATHS = _PATHS[0][1]
"""What says nothing of models or persons: the page's own files, and health, for load balancers that have no key."""


def scope_of_method(method: str) -> Scope | None:
    """Return the scope that a gRPC *method*, `/package.Service/Method`, needs; None where it needs none."""
    name = method.lstrip("/")
    if name in SCOPES:
        return SCOPES[name]
    return SCOPES.get(name.rpartition("/")[0], Scope.ADMIN)


def scope_of_request(method: str, path: str) -> Scope | None:
    """Return the scope that an HTTP request needs; None where it needs none."""
    for methods, pattern, scope in _PATHS:
        if method in methods.split() and pattern.fullmatch(path):
            return scope
    return Scope.ADMIN
