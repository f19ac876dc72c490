"""Figures of the gateway."""

from gateway.capture_figures import CaptureFigures
from services.common.metrics import LabelledCounts, StageLatencies
from services.common.traffic import TrafficFollower


class GatewayFigures:
    """Time of predictions by the version that made them; HTTP answers by their status; what is captured."""

    def __init__(self, follower: TrafficFollower) -> None:
        self.stages = StageLatencies(
            "aimass_gateway_stage_seconds",
            "Time of answered predictions: total, and in the calls of the services behind.",
            ("total", "preprocess", "inference"),
            follower.knows,
        )
        self.http = LabelledCounts("aimass_http_responses", "HTTP answers that have begun.", ("code",))
        self.capture = CaptureFigures()
