"""The parts of the demonstration that can be wrong without anybody noticing."""

import hashlib
import io
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimass.demo.chart import draw
from aimass.demo.checks import invariants
from aimass.demo.pictures import RARE, share_out, write_folder
from aimass.demo.record import Happened, Record
from aimass.demo.users import Crowd
from aimass.trainer.v1.capture_pb2 import CapturedPrediction
from gateway.journal import Journal
from services.trainer.data.cifar10 import LABELS
from services.trainer.storage.database import Database


def event(number: int, kind: str, cycle: int = 1, **payload: object) -> Happened:
    return Happened(number, kind, cycle, float(number), payload)


def told(*events: Happened) -> Record:
    record = Record(lambda happened: None)
    record.events.extend(events)
    return record


def test_no_picture_is_in_two_parts() -> None:
    pictures = share_out()

    def digests(pngs: list[bytes]) -> set[str]:
        return {hashlib.sha256(np.asarray(Image.open(io.BytesIO(png))).tobytes()).hexdigest() for png in pngs}

    first = {hashlib.sha256(image.tobytes()).hexdigest() for image in pictures.first.images}
    sent = digests([each.png for each in pictures.sent])
    referee = digests([each.png for each in pictures.referee])

    assert len(first) + len(sent) + len(referee) == 5_000
    assert len(first | sent | referee) == 5_000


def test_the_first_model_sees_next_to_nothing_of_two_classes(tmp_path: Path) -> None:
    write_folder(share_out(per_class=20), tmp_path)

    counts = {label: len(list((tmp_path / "train" / label).iterdir())) for label in LABELS}
    assert {label for label, count in counts.items() if count < 20} == set(RARE)
    assert {len(list((tmp_path / "test" / label).iterdir())) for label in LABELS} == {100}


@pytest.mark.parametrize("passed", [True, False])
def test_a_promotion_that_nothing_allowed_is_seen(tmp_path: Path, passed: bool) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'trainer.db'}")) as database:
        database.migrate()
    decided = event(1, "gate.decided", outcome="PASSED" if passed else "REFUSED")
    record = told(decided, event(2, "promotion.intended", wanted={"stable": 2}))

    holds = invariants(tmp_path, record, Crowd("127.0.0.1:1", {}, [], 1.0))
    assert holds["nothing was promoted that had not passed the gate"] == passed


def test_what_was_acknowledged_and_is_nowhere_is_seen(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'trainer.db'}")) as database:
        database.migrate()
    journal = Journal(tmp_path / "captured")
    journal.append(1, CapturedPrediction(prediction_id="waits").SerializeToString())
    journal.close()
    crowd = Crowd("127.0.0.1:1", {}, [], 1.0)
    crowd.captured = {"waits"}
    assert all(invariants(tmp_path, told(), crowd).values())

    crowd.captured, crowd.heard = {"waits", "lost"}, {("ada", "0" * 64)}
    assert [sentence for sentence, holds in invariants(tmp_path, told(), crowd).items() if not holds] == [
        "none is lost of 2 predictions that were said to be captured",
        "none is lost of 1 words that were taken in",
    ]


def test_the_picture_shows_all_that_happened(tmp_path: Path) -> None:
    record = told(event(1, "cycle.started"), event(2, "gate.decided", outcome="REFUSED"), event(3, "promoted"))
    record.serving.extend([(0.0, 1), (3.0, 2)])

    draw(record, {1: 0.4, 2: 0.6}, tmp_path / "demo.svg")

    svg = (tmp_path / "demo.svg").read_text()
    assert svg.startswith("<?xml")
    assert svg.count("<!-- version ") == 2
