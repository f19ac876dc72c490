"""Figures of the preprocess service."""

from collections.abc import Sequence

from services.common.errors import InvalidInput
from services.common.metrics import LabelledCounts, LabelledLatencies
from services.common.traffic import TrafficFollower
from services.preprocess.preparation import Prepared


class PreprocessFigures:
    """Time of requests and of images, by the version that they are meant for; images by what became of them."""

    def __init__(self, follower: TrafficFollower) -> None:
        self.stages = LabelledLatencies(
            "aimass_preprocess_stage_seconds",
            "Time in each stage: request for a whole request, wait and decode for each of its images.",
            ("model", "version", "stage"),
            lambda labels: follower.knows(labels[0], labels[1]),
        )
        self.images = LabelledCounts("aimass_preprocess_images", "Images by what became of them.", ("outcome",))

    def record(self, version: tuple[str, str], took: int, prepared: Sequence[Prepared]) -> None:
        """Count one request to *version*, a model's name and its version, that took *took* nanoseconds."""
        self.stages.add((*version, "request"), took)
        for each in prepared:
            self.stages.add((*version, "wait"), each.waited)
            self.stages.add((*version, "decode"), each.took)
            self.images.add((each.outcome.reason if isinstance(each.outcome, InvalidInput) else "OK",))
