"""Figures of the gateway."""

from services.common.metrics import LabelledCounts, LabelledLatencies
from services.common.traffic import TrafficFollower


class GatewayFigures:
    """Time of predictions by the version that made them; HTTP answers by their status."""

    def __init__(self, follower: TrafficFollower) -> None:
        self.stages = LabelledLatencies(
            "aimass_gateway_stage_seconds",
            "Time of answered predictions: total, and in the calls of the services behind.",
            ("model", "version", "stage"),
            lambda labels: follower.knows(labels[0], labels[1]),
        )
        self.http = LabelledCounts("aimass_http_responses", "HTTP answers that have begun.", ("code",))
