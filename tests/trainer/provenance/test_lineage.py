"""What has learnt from something that is deleted, and how it is removed."""

import hashlib

import numpy as np
import pytest
from sqlalchemy import delete, select

from services.common.errors import Conflict, NotReady
from services.trainer.data.models import create_model, find_model
from services.trainer.data.tables import SnapshotRow, SnapshotSampleRow
from services.trainer.feedback.tables import EmbeddingRow, EncoderRow
from services.trainer.loop.tables import PublicationRow
from services.trainer.options import ConversionOptions, EvaluationOptions, RefitOptions
from services.trainer.provenance.erasure import Erasure
from services.trainer.provenance.record import State
from services.trainer.provenance.tainting import find_deletion
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import RunState
from services.trainer.runs.store import RunFilter
from tests.trainer.feedback.conftest import SPEC
from tests.trainer.provenance.conftest import House

TIME = "2026-01-02T03:04:05.000Z"


@pytest.fixture
def learnt(house: House) -> House:
    """A house in which run `first` has learnt pictures 1 to 4 on top of `old`, and `second` all but the first one."""
    for picture in house.capture(4, "ann", seed=1):
        house.say(picture, "rex", picture % 2, trusted=True)
    house.run("old")
    house.run("first", options=RefitOptions(source="run:old", dataset=f"snapshot:{house.snapshot()}"))
    return house


def runs_of(house: House) -> set[str]:
    return {run.id for run in house.store.list(RunFilter())}


def taint(house: House, picture: int = 1, request_id: str = "deletion-1") -> tuple[list[str], list[int]]:
    """Delete a picture, and return the runs and versions that have learnt it."""
    house.erasure.rows("pets", house.forget(picture, request_id))
    part = house.deletions.find(request_id).record.parts["pets"]
    return sorted(part.runs), list(part.versions)


def test_a_run_on_a_snapshot_that_held_it_has_learnt_it(learnt: House) -> None:
    with learnt.database.begin() as session:
        session.add(PublicationRow(id="pets-1", model="pets", run="first", snapshot=None, version=3))

    assert taint(learnt) == (["first"], [3])
    assert learnt.origins.tainted_runs("pets", ()) == {"first"}


def test_what_was_made_without_it_has_not_learnt_it(learnt: House) -> None:
    (later,) = learnt.capture(1, "ann", seed=2)
    learnt.say(later, "rex", 0, trusted=True)
    learnt.run("second", f"snapshot:{learnt.snapshot()}")

    assert taint(learnt, later) == (["second"], [])


def test_so_have_all_that_were_started_or_made_from_it(learnt: House) -> None:
    learnt.serve("pets", 5, "first")
    learnt.run("further", start_from="run:first")
    learnt.run("from-version", start_from="pets@5")
    learnt.run("taught", distillation={"teacher": "run:further"})
    learnt.run("smaller", options=ConversionOptions(source="run:taught"))
    learnt.run("looked-at", options=EvaluationOptions(source="run:smaller"))
    learnt.run("clean", start_from="run:old")
    learnt.serve("pets", 6, "smaller")
    learnt.serve("pets", 7, "clean")

    found = taint(learnt)

    assert found == (["first", "from-version", "further", "looked-at", "smaller", "taught"], [5, 6])
    assert learnt.origins.tainted_runs("pets", ()) == set(found[0])
    assert learnt.origins.run_of("pets", 6, "") == learnt.store.get("smaller")  # known without inference from now on


def test_a_label_that_nobody_else_has_given_was_learnt_from_its_giver(house: House) -> None:
    mine, ours = house.capture(2, "bob", seed=1)
    for picture in (mine, ours):
        house.say(picture, "ann", 0, trusted=True)
    house.say(ours, "rex", 0, trusted=True)
    first = house.snapshot()
    with house.database.begin() as session:
        session.execute(delete(SnapshotSampleRow).where(SnapshotSampleRow.observation == mine))
    house.run("agreed", f"snapshot:{first}")
    house.deletions.delete_contributor("ann", "deletion-1")
    house.clock.passed += 10

    house.erasure.rows("pets", "deletion-1")

    assert house.deletions.find("deletion-1").runs == []
    assert house.picture(mine) is not None


def test_a_label_of_its_only_giver_taints(house: House) -> None:
    (picture,) = house.capture(1, "bob", seed=1)
    house.say(picture, "ann", 0, trusted=True)
    house.run("first", f"snapshot:{house.snapshot()}")
    house.deletions.delete_contributor("ann", "deletion-1")
    house.clock.passed += 10

    house.erasure.rows("pets", "deletion-1")

    assert house.deletions.find("deletion-1").runs == ["first"]
    row = house.picture(picture)
    assert row is not None
    assert row.sample is None


def test_of_runs_on_all_samples_their_numbers_tell_or_what_they_have_learnt(learnt: House) -> None:
    content = learnt.lineage.contents(find_model(learnt.database, "pets"), [2])
    assert content == {}  # no run has to be asked
    learnt.run("all", "model:pets@4")
    learnt.run("none", "model:pets@1")
    learnt.run("renumbered", "model:pets@1")
    learnt.run("other", "model:birds@4")
    (key,) = learnt.lineage.contents(find_model(learnt.database, "pets"), [2]).values()
    np.save(learnt.folders.runs / "renumbered" / "learnt.npy", np.array([1, key], np.uint64))
    np.save(learnt.folders.runs / "none" / "learnt.npy", np.array([1], np.uint64))

    assert taint(learnt, 2)[0] == ["all", "first", "renumbered"]


def test_a_run_on_a_snapshot_has_learnt_what_its_base_holds(learnt: House) -> None:
    for digest, base in (("beside", "model:pets@3"), ("apart", "model:pets@1"), ("public", "cifar10-slice")):
        with learnt.database.begin() as session:
            session.add(
                SnapshotRow(
                    digest=digest, model="pets", base=base, base_digest="", base_drawn=[], counts={}, create_time=TIME
                )
            )
        learnt.run(digest, f"snapshot:{digest}")
        np.save(learnt.folders.runs / digest / "learnt.npy", np.array([1], np.uint64))

    assert taint(learnt, 2)[0] == ["beside", "first"]


def test_a_run_that_does_not_say_what_it_saw_may_have_seen_what_was_there(learnt: House) -> None:
    learnt.run("looked-at", "model:pets@1")
    learnt.age(3, "2999-01-01T00:00:00.000Z")

    assert taint(learnt, 2)[0] == ["first", "looked-at"]
    assert "looked-at" not in taint(learnt, 3, "deletion-2")[0]


def test_a_version_of_another_model_is_replaced_there(learnt: House) -> None:
    create_model(learnt.database, "birds", ["tit", "owl"], SPEC.canonical_json())
    learnt.serve("pets", 1, "first")
    learnt.serve("birds", 2, "first")
    learnt.serve("unknown", 1, "first")

    erased = learnt.erasure.rows("pets", learnt.forget(1))
    del learnt.served["pets"][1]
    with pytest.raises(Conflict, match="version 1 of model 'unknown' was made from run 'first'"):
        learnt.erasure.runs("pets", "deletion-1", (1,))
    del learnt.served["unknown"]
    learnt.erasure.runs("pets", "deletion-1", (1,))
    theirs = learnt.erasure.rows("birds", "deletion-1")

    assert (erased.versions, theirs.versions) == ((1,), (2,))
    assert [event.kind for event in learnt.events.read("birds")] == ["deletion.requested"]
    assert "first" in runs_of(learnt)  # the other model still has to find out what comes before it
    del learnt.served["birds"][2]
    learnt.erasure.runs("birds", "deletion-1", (2,))
    assert runs_of(learnt) == {"old"}
    assert learnt.deletions.find("deletion-1").state is State.COMPLETED


def test_a_version_whose_run_is_known_is_no_other_that_has_made_the_same_graph(learnt: House) -> None:
    learnt.run("clean", start_from="run:old")
    for number, run_id in ((3, "first"), (4, "clean")):
        with learnt.database.begin() as session:
            session.add(PublicationRow(id=f"pets-{number}", model="pets", run=run_id, version=number))
        learnt.serve("pets", number, "first")

    assert taint(learnt) == (["first"], [3])


def test_what_is_tainted_is_found_by_its_names_until_it_is_gone(learnt: House) -> None:
    learnt.serve("pets", 5, "first")
    learnt.run("further", start_from="pets@5")
    sources = ("run:first", "run:further", "pets@5", "run:old", "pets@6", "birds@5")
    before = [find_deletion(learnt.database, source) for source in sources]
    taint(learnt)
    tainted = [find_deletion(learnt.database, source) for source in sources]
    del learnt.served["pets"][5]
    learnt.erasure.runs("pets", "deletion-1", ())
    learnt.run("first")  # somebody else's
    gone = [find_deletion(learnt.database, source) for source in sources]

    assert before == [""] * 6
    assert tainted == ["deletion-1"] * 3 + [""] * 3
    assert gone == ["", "", "deletion-1", "", "", ""]


def test_runs_snapshots_and_folders_go_in_the_end(learnt: House) -> None:
    (later,) = learnt.capture(1, "ann", seed=2)
    learnt.say(later, "rex", 0, trusted=True)
    learnt.run("second", f"snapshot:{learnt.snapshot()}")
    with learnt.database.begin() as session:
        snapshots = list(session.scalars(select(SnapshotRow.digest)))
        session.add(PublicationRow(id="pets-1", model="pets", run="second", snapshot=snapshots[0], version=3))
    taint(learnt, later)

    counts = learnt.erasure.runs("pets", "deletion-1", (3,))

    assert {name: counts[name] for name in ("runs", "run_folders", "snapshots", "references_left")} == {
        "runs": 1, "run_folders": 1, "snapshots": 1, "references_left": 0,
    }  # fmt: skip
    assert sorted(path.name for path in learnt.folders.runs.iterdir() if path.is_dir()) == ["first", "old"]
    assert runs_of(learnt) == {"old", "first"}
    with learnt.database.read() as session:
        assert len(list(session.scalars(select(SnapshotRow)))) == 1
        (publication,) = session.scalars(select(PublicationRow))
        assert (publication.version, publication.snapshot, publication.deletion) == (3, None, "deletion-1")
    assert learnt.erasure.runs("pets", "deletion-1", (3,)) == counts


def test_a_snapshot_of_the_same_contents_that_came_again_stays_with_its_run(learnt: House) -> None:
    taint(learnt)
    (again, *_) = learnt.capture(4, "bob", seed=1, time="2999-01-01T00:00:00.000Z")
    learnt.say(again, "rex", 1, trusted=True)
    learnt.run("clean", f"snapshot:{learnt.snapshot()}")

    learnt.erasure.runs("pets", "deletion-1", ())

    with learnt.database.read() as session:
        digests = list(session.scalars(select(SnapshotRow.digest)))
    assert digests == [learnt.store.get("clean").dataset.removeprefix("snapshot:")]


def test_a_run_at_work_is_told_to_stop_and_waited_for(learnt: House) -> None:
    dataset = learnt.store.get("first").dataset
    learnt.run("waiting", dataset, RunState.QUEUED)
    learnt.run("running", dataset, RunState.QUEUED)
    learnt.store.claim("running", "service", 100)
    taint(learnt)

    with pytest.raises(NotReady, match="a process is still at work on run 'running'"):
        learnt.erasure.runs("pets", "deletion-1", ())

    assert learnt.store.get("waiting").state is RunState.CANCELLED
    assert learnt.store.get("running").cancel_requested
    assert (learnt.folders.runs / "first").exists()
    learnt.store.requeue("running")  # as its supervisor does once its process is gone
    with (
        RunFolder(learnt.folders.runs / "first").locked(),
        pytest.raises(NotReady, match="at work on run 'first'"),
    ):
        learnt.erasure.runs("pets", "deletion-1", ())
    learnt.erasure.runs("pets", "deletion-1", ())
    assert runs_of(learnt) == {"old"}


def test_a_version_that_was_made_of_it_meanwhile_is_refused(learnt: House) -> None:
    taint(learnt)
    learnt.run("late", start_from="run:first")
    learnt.run("later", state=RunState.QUEUED, start_from="run:late")
    learnt.serve("pets", 9, "late")

    with pytest.raises(Conflict, match="version 9 of model 'pets' was made from run 'late'"):
        learnt.erasure.runs("pets", "deletion-1", ())

    del learnt.served["pets"][9]
    learnt.erasure.runs("pets", "deletion-1", ())
    assert runs_of(learnt) == {"old"}


def test_rows_go_while_inference_is_away_and_the_loop_is_told_later(learnt: House) -> None:
    def away() -> dict[str, dict[int, str]]:
        raise NotReady("inference is away; start it")

    erasure = Erasure(
        learnt.database, learnt.events, learnt.store, learnt.lineage, learnt.folders, away, learnt.sifter.sift
    )
    with pytest.raises(NotReady, match="inference is away"):
        erasure.rows("pets", learnt.forget(1))

    assert learnt.picture(1) is None
    assert len(list(learnt.blobs.digests())) == 3
    learnt.serve("pets", 1, "first")
    assert learnt.erasure.rows("pets", "deletion-1").versions == (1,)


def test_an_encoder_lies_in_another_run_then_or_is_forgotten_with_its_features(learnt: House) -> None:
    shared, own = b"shared", b"own"
    digests = [hashlib.sha256(data).hexdigest() for data in (shared, own)]
    for run_id, data in (("old", shared), ("first", shared)):
        (learnt.folders.runs / run_id / "encoder.onnx").write_bytes(data)
    with learnt.database.begin() as session:
        for digest in digests:
            session.add(EncoderRow(digest=digest, model="pets", run="first", features=1, create_time=TIME))
            session.flush()
            session.add(EmbeddingRow(encoder=digest, observation=2, vector=b"\0\0"))
    taint(learnt)

    learnt.erasure.runs("pets", "deletion-1", ())

    with learnt.database.read() as session:
        assert session.execute(select(EncoderRow.digest, EncoderRow.run)).all() == [(digests[0], "old")]
        assert list(session.scalars(select(EmbeddingRow.encoder))) == [digests[0]]
