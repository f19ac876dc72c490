"""An answer is followed to the samples that its version has learnt."""

import numpy as np
import pytest
from sqlalchemy import update

from services.common.errors import NotFound, NotReady
from services.common.manifest import digest_of
from services.trainer.data.features import features_path
from services.trainer.data.models import find_model
from services.trainer.data.pinned import load_base
from services.trainer.data.tables import ModelRow, SampleRow, SnapshotRow, SnapshotSampleRow
from services.trainer.feedback.tables import EmbeddingRow, EncoderRow, LoopModelRow
from services.trainer.loop.tables import PublicationRow
from services.trainer.provenance.trace import Trace, Tracer
from tests.trainer.data.conftest import write_classes
from tests.trainer.feedback.conftest import prediction_id
from tests.trainer.provenance.conftest import House

ENCODER = "e" * 64
TIME = "2026-01-02T03:04:05.000Z"


def embed(house: House, vectors: dict[int, tuple[float, float]]) -> None:
    with house.database.begin() as session:
        session.merge(EncoderRow(digest=ENCODER, model="pets", run="r", features=2, create_time=TIME))
        session.flush()
        for picture, vector in vectors.items():
            data = np.array(vector, "<f2").tobytes()
            session.merge(EmbeddingRow(encoder=ENCODER, observation=picture, vector=data))


@pytest.fixture
def tracer(house: House) -> Tracer:
    house.sources = type(house.sources)(
        house.sources.data, (house.folder,), house.sources.database, house.sources.blobs
    )
    return Tracer(house.database, house.origins, house.sources, lambda: house.served)


@pytest.fixture
def asked(house: House) -> str:
    """A prediction of version 1, made by run `first`, which has learnt pictures 1 and 2 of three samples."""
    for number, (who, label) in enumerate([("ann", 0), ("bob", 1)]):
        (picture,) = house.capture(1, who, seed=number + 1)
        house.say(picture, who, label, trusted=True)
    house.run("first", f"snapshot:{house.snapshot()}")
    with house.database.begin() as session:
        session.execute(update(SnapshotSampleRow).values(part="train"))
    house.serve("pets", 1, "first")
    (later,) = house.capture(1, "eve", seed=3)
    house.say(later, "eve", 0, trusted=True)
    house.capture(1, "dan", seed=4)
    return prediction_id(4000)


def test_the_samples_that_are_most_like_the_picture_come_first(house: House, tracer: Tracer, asked: str) -> None:
    embed(house, {1: (0.0, 1.0), 2: (1.0, 0.1), 3: (1.0, 0.0), 4: (2.0, 0.0)})

    trace = tracer.trace(asked, 10)

    assert (trace.model, trace.version, trace.run_id) == ("pets", 1, "first")
    assert trace.graph_digest == digest_of(b"first")
    assert trace.snapshot == house.store.get("first").dataset.removeprefix("snapshot:")
    assert [(each.sample, each.label, each.contributor) for each in trace.samples] == [
        (2, "dog", "bob"), (1, "cat", "ann"),
    ]  # fmt: skip
    assert trace.samples[0].similarity == pytest.approx(1 / 1.01**0.5, abs=1e-3)
    assert trace.samples[0].time
    assert not trace.tainted
    assert len(tracer.trace(asked, 1).samples) == 1


def test_samples_of_the_base_are_named_by_their_place(house: House, tracer: Tracer, asked: str) -> None:
    name = str(write_classes(house.folder / "base", {"cat": 12, "dog": 12, "cow": 12}))
    with house.database.begin() as session:
        session.execute(update(ModelRow).values(labels=["cat", "cow", "dog"]))  # as a folder gives them
    base = load_base(name, find_model(house.database, "pets"), house.sources)
    features = np.tile(np.array([[0.0, 1.0]], np.float16), (len(base.train) + 5, 1))
    features[3] = (5.0, 0.0)
    features[7] = (1.0, 0.05)
    house.sources.prepared.mkdir(parents=True, exist_ok=True)
    np.save(features_path(house.sources.prepared, ENCODER, base.digest), features)
    with house.database.begin() as session:
        session.execute(update(SnapshotRow).values(base=name, base_drawn=[2, 7, 9]))
    embed(house, {2: (1.0, 1.0), 4: (2.0, 0.0)})

    nearest = tracer.trace(asked, 2).samples

    assert [(each.sample, each.base_sample) for each in nearest] == [(0, f"{name} train[7]"), (2, "")]
    assert nearest[0].label == base.labels[base.train.labels[7]]
    assert (nearest[0].contributor, nearest[0].time) == ("", "")

    house.run("plain", name)
    house.serve("pets", 1, "plain")
    with house.database.begin() as session:
        session.execute(update(LoopModelRow).values(base=name))
    assert [each.base_sample for each in tracer.trace(asked, 1).samples] == [f"{name} train[3]"]


def test_what_is_not_known_is_left_empty(house: House, tracer: Tracer, asked: str) -> None:
    assert tracer.trace(asked, 10).samples == ()  # without features
    embed(house, {2: (1.0, 0.0), 4: (2.0, 0.0)})
    with house.database.begin() as session:
        session.execute(update(SampleRow).where(SampleRow.number == 2).values(number=20))  # it has another label by now
    assert tracer.trace(asked, 10).samples[0].contributor == ""

    house.served.clear()

    assert tracer.trace(asked, 10) == Trace("pets", 1, "", "", "", (), tainted=False)


def test_without_inference_what_the_loop_has_published_is_known(house: House, asked: str) -> None:
    def away() -> dict[str, dict[int, str]]:
        raise NotReady("inference is away; start it")

    with house.database.begin() as session:
        session.add(PublicationRow(id="pets-1", model="pets", run="first", snapshot=None, version=1))

    trace = Tracer(house.database, house.origins, house.sources, away).trace(asked, 10)

    assert (trace.run_id, trace.graph_digest) == ("first", digest_of(b"first"))


def test_it_is_told_that_a_version_has_learnt_what_was_deleted(house: House, tracer: Tracer, asked: str) -> None:
    house.erasure.rows("pets", house.forget(1))
    assert tracer.trace(asked, 10).tainted
    del house.served["pets"]
    house.erasure.runs("pets", "deletion-1", (1,))

    trace = tracer.trace(asked, 10)

    assert (trace.tainted, trace.run_id, trace.snapshot) == (True, "first", "")


def test_a_prediction_that_is_not_kept_is_not_found(house: House, tracer: Tracer, asked: str) -> None:
    house.erasure.rows("pets", house.forget(4))

    with pytest.raises(NotFound, match=r"was not captured or is forgotten"):
        tracer.trace(asked, 10)
