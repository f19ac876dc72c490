"""Figures of the preprocess service."""

from collections.abc import Sequence

from services.common.errors import InvalidInput
from services.common.metrics import LabelledCounts, StageLatencies
from services.common.traffic import TrafficFollower
from services.preprocess.preparation import Prepared


class PreprocessFigures:
    """Time of requests and of images, by the version that they are meant for; images by what became of them."""

    def __init__(self, follower: TrafficFollower) -> None:
        self.stages = StageLatencies(
            "aimass_preprocess_stage_seconds",
            "Time in each stage: request for a whole request, wait and decode for each of its images.",
            ("request", "wait", "decode"),
            follower.knows,
        )
        self.images = LabelledCounts("aimass_preprocess_images", "Images by what became of them.", ("outcome",))

    def record(self, model: str, version: int, took: int, prepared: Sequence[Prepared]) -> None:
        """Count one request that took *took* nanoseconds, and its images."""
        request, wait, decode = self.stages.of(model, version)
        request.add(took)
        for each in prepared:
            wait.add(each.waited)
            decode.add(each.took)
            self.images.add((each.outcome.reason if isinstance(each.outcome, InvalidInput) else "OK",))
