"""`aimass traffic`, `promote` and `rollback`: which versions of a model answer, and changes of it."""

from collections.abc import Callable
from typing import TypeVar

import grpc
from rich.console import Console
from rich.table import Table

from aimass.console import say
from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.channels import SIBLING_OPTIONS, host_and_port, reachable
from services.common.errors import Conflict, NotReady, SettingsError
from services.common.settings import load_settings
from services.inference.settings import InferenceSettings
from services.trainer.settings import TrainerSettings

Answer = TypeVar("Answer")
CALL_SECONDS = 60.0
"""A move may load a version first."""


def show_traffic(out: Console, model: str) -> None:
    """Print the traffic of *model*, its versions, and what its shadow has shown."""

    def ask(stub: ModelLifecycleServiceStub) -> tuple[pb.ModelState, pb.GetTrafficResponse]:
        versions = stub.ListVersions(pb.ListVersionsRequest(model=model), timeout=CALL_SECONDS)
        return versions.models[0], stub.GetTraffic(pb.GetTrafficRequest(model=model), timeout=CALL_SECONDS)

    state, traffic = _call(ask)
    table = Table("version", "state", "traffic", "made", "test accuracy", box=None)
    for version in state.versions:
        accuracy = version.metrics.get("test_accuracy")
        table.add_row(
            str(version.version),
            pb.ModelVersion.State.Name(version.state).removeprefix("STATE_"),
            ", ".join(_parts(traffic.traffic, version.version)),
            version.create_time.ToDatetime().isoformat(" ", "minutes") if version.HasField("create_time") else "-",
            "-" if accuracy is None else f"{accuracy:.2%}",
        )
    out.print(table)
    if traffic.HasField("shadow"):
        out.print(_shadow(traffic.shadow), highlight=False)


def change_traffic(out: Console, model: str, stable: int, canary: int, share: float, shadow: int) -> None:
    """Make the given versions the wanted ones; *stable* 0 leaves the stable version as it is."""

    def move(stub: ModelLifecycleServiceStub) -> pb.Traffic:
        current = stub.GetTraffic(pb.GetTrafficRequest(model=model), timeout=CALL_SECONDS).traffic
        request = pb.SetTrafficRequest(
            model=model,
            stable_version=stable or current.stable_version,
            expected_generation=current.generation,
            canary=pb.Canary(version=canary, share=share) if canary else None,
            shadow_version=shadow,
        )
        return stub.SetTraffic(request, timeout=CALL_SECONDS).traffic

    _say(out, model, _call(move))


def promote(out: Console, model: str, version: int) -> None:
    """Make *version*, or else what is tried out, stable."""
    request = pb.PromoteRequest(model=model, version=version)
    _say(out, model, _call(lambda stub: stub.Promote(request, timeout=CALL_SECONDS).traffic), _hint("promote", model))


def roll_back(out: Console, model: str) -> None:
    """End a trial or, where there is none, go back to the previous version."""
    request = pb.RollbackRequest(model=model)
    _say(out, model, _call(lambda stub: stub.Rollback(request, timeout=CALL_SECONDS).traffic), _hint("rollback", model))


def _hint(command: str, model: str) -> str:
    """Return that the loop does it, too; empty where it is off, as far as this shell knows."""
    try:
        if not load_settings(TrainerSettings).loop:
            return ""
    except SettingsError:  # of a trainer, which has no part in this
        return ""
    return (
        f"Where the loop is on, `aimass loop {command} {model}` does it through the loop, which then knows who and why."
    )


def _call(ask: Callable[[ModelLifecycleServiceStub], Answer]) -> Answer:
    settings = load_settings(InferenceSettings)
    address = host_and_port(reachable(settings.host), settings.port)
    with grpc.insecure_channel(address, options=SIBLING_OPTIONS) as channel:
        try:
            return ask(ModelLifecycleServiceStub(channel))
        except grpc.RpcError as error:
            kind = NotReady if error.code() is grpc.StatusCode.UNAVAILABLE else Conflict
            raise kind(f"inference at {address} says {error.code().name}: {error.details()}") from error


def _say(out: Console, model: str, traffic: pb.Traffic, hint: str = "") -> None:
    numbers = [traffic.stable_version, traffic.canary.version, traffic.shadow_version, traffic.previous_version]
    parts = [
        f"version {number} is {' and '.join(_parts(traffic, number))}" for number in dict.fromkeys(numbers) if number
    ]
    out.print(f"{model}, generation {traffic.generation}: {', '.join(parts)}", highlight=False, soft_wrap=True)
    if hint:
        say(out, hint)


def _parts(traffic: pb.Traffic, version: int) -> list[str]:
    roles = {
        "stable": traffic.stable_version,
        f"canary for {traffic.canary.share:.1%}": traffic.canary.version,
        "shadow": traffic.shadow_version,
        "previous": traffic.previous_version,
    }
    return [role for role, number in roles.items() if number == version]


def _shadow(report: pb.ShadowReport) -> str:
    if not report.compared:
        return f"shadow {report.version}: nothing compared yet, {report.failed} failed, {report.skipped} skipped"
    ratio = report.shadow_time.ToNanoseconds() / max(report.stable_time.ToNanoseconds(), 1)
    return (
        f"shadow {report.version}: agrees on {report.agreed_samples / report.samples:.1%} of {report.samples} samples, "
        f"takes {ratio:.2f} times as long; {report.failed} failed, {report.dropped} dropped, {report.skipped} skipped"
    )
