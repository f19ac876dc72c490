"""What goes with a deletion, and that nothing of it is left."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update

from services.common.errors import Conflict, InvalidInput, NotAllowed, NotFound, NotReady
from services.common.identity import ANONYMOUS, Caller, Scope
from services.trainer.data.imported import NewSample, SampleImport
from services.trainer.data.models import Model, create_model
from services.trainer.data.observing import State, VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.feedback.contributors import create_key, is_trusted, list_keys
from services.trainer.feedback.tables import (
    AnswerRow,
    ContributorRow,
    DeletionRow,
    EmbeddingRow,
    EncoderRow,
    FindingRow,
)
from services.trainer.feedback.voting import NewFeedback, Voting
from services.trainer.loop.payloads import DeletionRequested
from services.trainer.provenance.erasure import SETTLE_SECONDS
from services.trainer.provenance.record import State as DeletionState
from tests.trainer.feedback.conftest import SPEC, Groups, captured, pictures
from tests.trainer.provenance.conftest import House

TIME = "2026-01-02T03:04:05.000Z"


def erase_contributor(house: House, name: str = "ann", request_id: str = "deletion-1") -> dict[str, int]:
    house.deletions.delete_contributor(name, request_id)
    house.clock.passed += 10
    return dict(house.erasure.rows("pets", request_id).counts)


def describe(house: House, picture: int) -> None:
    """Let the analyst have found something out about a picture."""
    with house.database.begin() as session:
        session.merge(EncoderRow(digest="e" * 64, model="pets", run="r", features=2, create_time=TIME))
        session.flush()
        session.add(EmbeddingRow(encoder="e" * 64, observation=picture, vector=b"\0\0\0\0"))
        session.add(FindingRow(observation=picture, kind="LIKELY_WRONG", level=1.0, detail="", time=TIME))
        session.add(
            AnswerRow(model="pets", version=1, observation=picture, best=0, best_probability=0.5, probabilities=b"")
        )


def test_a_picture_goes_with_all_that_is_known_of_it(house: House) -> None:
    first, second = house.capture(2, "ann", seed=1)
    house.say(first, "rex", 0, trusted=True)
    describe(house, first)
    house.snapshot()
    house.folders.prepared.mkdir(parents=True)
    (house.folders.prepared / "set").mkdir()
    (house.folders.prepared / "features-1-2.npy").touch()

    erased = house.erasure.rows("pets", house.forget(first))

    assert dict(erased.counts) == {
        "answers": 1, "blobs": 1, "embeddings": 1, "findings": 1, "observations": 1, "predictions": 1, "prepared": 1,
        "samples": 1, "snapshot_samples": 1, "votes": 1,
    }  # fmt: skip
    assert erased.versions == ()
    assert house.picture(first) is None
    assert house.picture(second) is not None
    assert len(list(house.blobs.digests())) == 1
    assert [path.name for path in house.folders.prepared.iterdir()] == ["features-1-2.npy"]


def test_carried_out_again_it_is_the_same(house: House) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    deletion = house.forget(picture)

    first = house.erasure.rows("pets", deletion)

    assert house.erasure.rows("pets", deletion) == first
    assert house.erasure.runs("pets", deletion, ()) == house.erasure.runs("pets", deletion, ())
    assert house.deletions.find(deletion).state is DeletionState.COMPLETED


def test_files_that_a_killed_process_has_left_go_the_next_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    deletion = house.forget(picture)
    with monkeypatch.context() as patched:
        patched.setattr(type(house.folders), "remove_files", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            house.erasure.rows("pets", deletion)
    assert list(house.deletions.report(deletion)["search"]["found"]) == [str(next(house.folders.blobs.glob("*/*/*")))]

    house.erasure.rows("pets", deletion)

    assert house.deletions.report(deletion)["search"]["found"] == {}


def test_who_is_forgotten_takes_the_pictures_along_that_only_they_have_sent(house: House) -> None:
    mine = house.capture(2, "ann", seed=1)
    (other,) = house.capture(1, "bob", seed=2)
    house.say(mine[0], "rex", 0, trusted=True)  # a reviewer's word makes it nobody else's
    house.say(other, "ann", 1)

    counts = erase_contributor(house)

    assert counts == {"blobs": 2, "observations": 2, "predictions": 2, "samples": 1, "votes": 2}
    assert [house.picture(number) is None for number in (*mine, other)] == [True, True, False]


def test_a_picture_that_others_have_sent_too_loses_a_word_and_is_judged_again(house: House) -> None:
    (shared,) = house.capture(1, "ann", seed=1)
    house.intake.take([captured(77, pictures(1, seed=1)[0], contributor="bob")])
    house.say(shared, "ann", 1)
    before = house.picture(shared)
    house.say(shared, "bob", 1)

    erase_contributor(house)

    after = house.picture(shared)
    assert before is not None
    assert after is not None
    with house.database.read() as session:
        assert list(session.scalars(select(PredictionRow.contributor))) == ["bob"]
        assert list(session.scalars(select(VoteRow.contributor))) == ["bob"]
        assert list(session.scalars(select(SampleRow.contributor))) in ([], ["bob"])
    assert not after.stale
    assert (after.state == State.ACCEPTED) == (after.sample is not None)


def test_what_was_said_is_in_no_file_of_the_database_any_more(house: House) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    comment = "my cat Mauz, at home"
    with house.database.begin(alone=True) as session:
        word = Word("ann", VoteKind.LABEL, label=0, comment=comment)
        vote(session, session.get_one(ObservationRow, picture), word)

    def files() -> bytes:
        return b"".join(each.read_bytes() for each in house.folder.glob("trainer.db*"))

    assert comment.encode() in files()
    erase_contributor(house)

    assert comment.encode() not in files()


def test_what_was_imported_goes_with_who_gave_it(house: House) -> None:
    with SampleImport(house.database, house.folders.blobs, "pets", "ann") as taking:
        taking.add([NewSample(image, "cat") for image in pictures(2, seed=5)])
    with SampleImport(house.database, house.folders.blobs, "pets") as taking:
        taking.add([NewSample(image, "cat") for image in pictures(1, seed=6)])

    erase_contributor(house)

    assert [house.count(table) for table in (SampleRow, ObservationRow, VoteRow)] == [1, 1, 1]


def test_what_began_before_a_contributor_was_deleted_is_never_taken(house: House, policies: dict[str, Groups]) -> None:
    ann = Caller("ann", frozenset({Scope.FEEDBACK}), trusted=True)
    voting = Voting(house.database, house.folders.blobs, lambda name: policies[name], house.sifter)

    def give(seed: int, began: datetime) -> None:
        (image,) = pictures(1, seed)
        with SampleImport(
            house.database, house.folders.blobs, "pets", "ann", partial(is_trusted, caller=ann, began=began)
        ) as taking:
            taking.add([NewSample(image, "cat")])

    def say(seed: int, began: datetime) -> None:
        voting.send(ann, NewFeedback(model="pets", label="cat", image=pictures(1, seed)[0]), began)

    def check_refused(began: datetime) -> None:
        for speak in (give, say):
            with pytest.raises(NotAllowed, match="what ann has given is deleted") as caught:
                speak(7, began)
            assert caught.value.reason == "CONTRIBUTOR_DELETED"

    create_key(house.database, "ann", [Scope.FEEDBACK], trusted=True)
    began = datetime.now(UTC)
    give(1, began)
    say(2, began)
    deletion = house.deletions.delete_contributor("ann", "deletion-1").id
    check_refused(began)
    house.clock.passed += 10
    house.erasure.rows("pets", deletion)
    check_refused(began)
    house.erasure.runs("pets", deletion, ())
    check_refused(datetime.now(UTC))  # without a key
    create_key(house.database, "ann", [Scope.FEEDBACK], trusted=True)
    check_refused(began)

    assert [house.count(table) for table in (SampleRow, ObservationRow, VoteRow)] == [0, 0, 0]
    assert list(house.blobs.digests()) == []
    give(3, datetime.now(UTC))
    say(4, datetime.now(UTC))
    assert house.count(VoteRow) == 2


def test_a_deletion_while_a_picture_is_being_stored_is_heeded(
    house: House, policies: dict[str, Groups], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = Caller("ann", frozenset({Scope.FEEDBACK}), trusted=True)
    create_key(house.database, "ann", [Scope.FEEDBACK], trusted=True)
    voting = Voting(house.database, house.folders.blobs, lambda name: policies[name], house.sifter)
    monkeypatch.setattr(voting, "_check_room", lambda *_: house.deletions.delete_contributor("ann", "deletion-1"))

    with pytest.raises(NotAllowed, match="what ann has given is deleted"):
        voting.send(ann, NewFeedback(model="pets", label="cat", image=pictures(1)[0]))

    assert [house.count(table) for table in (ObservationRow, VoteRow)] == [0, 0]


def test_a_deleted_picture_does_not_come_back_from_a_gateway_that_sends_again(
    house: House, policies: dict[str, Groups]
) -> None:
    policies["birds"] = Groups()
    create_model(house.database, "birds", ["owl", "wren"], SPEC.canonical_json())
    (image,) = pictures(1, seed=1)

    def send(number: int, time: str = TIME, model: str = "pets") -> str:
        return house.intake.take([captured(number, image, model=model, time=time)])[0].refusal

    def after_request(seconds: int) -> str:
        return (house.clock.begin + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")

    assert send(1) == ""
    deletion = house.forget(1)
    assert send(2, after_request(30)) == ""  # goes with the picture
    house.clock.passed += 60
    house.erasure.rows("pets", deletion)

    assert [send(1), send(2, after_request(30)), send(3), send(4, after_request(59))] == ["SAMPLE_DELETED"] * 4
    assert [house.count(table) for table in (PredictionRow, ObservationRow)] == [0, 0]
    assert list(house.blobs.digests()) == []
    assert send(5, model="birds") == ""  # of which nothing was deleted
    with house.database.begin() as session:  # as an earlier release has written it
        row = session.get_one(DeletionRow, deletion)
        row.report = {name: value for name, value in row.report.items() if name != "erase_time"}
    assert send(3) == "SAMPLE_DELETED"
    assert send(6, after_request(1)) == ""  # somebody has asked for an answer to it anew


def test_the_end_of_a_picture_that_is_being_stored_again_is_heeded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    deletion, store = house.forget(picture), house.intake._store

    def storing(*arguments: Any, **more: Any) -> Any:
        stored = store(*arguments, **more)
        house.erasure.rows("pets", deletion)
        return stored

    monkeypatch.setattr(house.intake, "_store", storing)
    late = house.intake.take([captured(7, pictures(1, seed=1)[0])])

    assert [(each.observation, each.refusal) for each in late] == [(0, "SAMPLE_DELETED")]
    assert house.count(ObservationRow) == 0
    assert list(house.blobs.digests()) == []


def test_keys_and_name_go_at_once_and_rows_once_nothing_can_come_any_more(house: House) -> None:
    create_key(house.database, "ann", [Scope.FEEDBACK], trusted=False)
    create_key(house.database, "bob", [Scope.FEEDBACK], trusted=False)
    house.capture(1, "ann", seed=1)

    deletion = house.deletions.delete_contributor("ann", "deletion-1")

    assert [key.contributor for key in list_keys(house.database)] == ["bob"]
    with house.database.read() as session:
        assert session.get(ContributorRow, "ann") is None
    with pytest.raises(NotReady, match=f"may arrive for {SETTLE_SECONDS} more seconds"):
        house.erasure.rows("pets", deletion.id)
    assert house.capture(1, "ann", seed=2) == [0]  # is not taken any more
    house.clock.passed += SETTLE_SECONDS
    assert house.erasure.rows("pets", deletion.id).counts["observations"] == 1


def test_a_contributor_is_forgotten_in_all_models(house: House, policies: dict[str, Groups]) -> None:
    create_model(house.database, "birds", ["tit", "owl"], SPEC.canonical_json())
    policies["birds"] = policies["pets"]
    house.capture(1, "ann", seed=1)
    house.capture(1, "ann", seed=2, model="birds")

    deletion = house.deletions.delete_contributor("ann", "deletion-1")
    house.clock.passed += 10
    house.erasure.rows("birds", deletion.id)
    half = house.deletions.find(deletion.id)
    house.erasure.rows("pets", deletion.id)

    assert half.state is DeletionState.ERASING
    assert house.deletions.find(deletion.id).state is DeletionState.RETRAINING
    assert house.count(ObservationRow) == 0
    for name in ("pets", "birds"):
        assert [event.kind for event in house.events.read(name)] == ["deletion.requested"]
        assert dict(house.erasure.runs(name, deletion.id, ()))["references_left"] == 0
    assert house.deletions.find(deletion.id).state is DeletionState.COMPLETED


def test_the_same_picture_of_another_model_stays_with_its_file(house: House, policies: dict[str, Groups]) -> None:
    create_model(house.database, "birds", ["tit", "owl"], SPEC.canonical_json())
    policies["birds"] = policies["pets"]
    (picture,) = house.capture(1, "ann", seed=1)
    house.intake.take([captured(77, pictures(1, seed=1)[0], model="birds")])

    counts = house.erasure.rows("pets", house.forget(picture)).counts

    assert "blobs" not in counts
    assert len(list(house.blobs.digests())) == 1
    found = house.deletions.report("deletion-1")["search"]["found"]
    assert {name for name in found if name.startswith("observations")} == {
        "observations.content_digest", "observations.pixel_digest",
    }  # fmt: skip


def test_the_event_says_neither_who_nor_what_and_who_asked_can_be_told_so(house: House) -> None:
    house.capture(1, "ann", seed=1)

    deletion = house.deletions.delete_contributor("ann", "deletion-1")
    house.clock.passed += 10
    house.erasure.rows("pets", "deletion-1")
    house.erasure.runs("pets", "deletion-1", ())

    (event,) = house.events.read("pets")
    assert isinstance(event.payload, DeletionRequested)
    assert (event.payload.deletion_id, event.payload.deadline) == ("deletion-1", deletion.deadline)
    assert timedelta(hours=71) < deletion.deadline - house.clock() <= timedelta(hours=72)
    told = json.dumps([event.payload.model_dump(mode="json"), house.deletions.report("deletion-1")])
    assert "ann" not in told
    assert hashlib.sha256(b"ann").hexdigest() not in told
    assert house.deletions.delete_contributor("ann", "deletion-1").state is DeletionState.COMPLETED
    with pytest.raises(Conflict, match="is of something else"):
        house.deletions.delete_contributor("bob", "deletion-1")


def test_asked_again_it_is_the_same_deletion_and_another_is_refused(house: House) -> None:
    first, second = house.capture(2, "ann", seed=1)
    begun = house.deletions.delete_sample(first, "deletion-1")
    house.erasure.rows("pets", "deletion-1")

    again = house.deletions.delete_sample(first, "deletion-1")

    assert (again.id, again.deadline) == (begun.id, begun.deadline)
    assert len(house.events.read("pets")) == 1
    with pytest.raises(Conflict, match="deletion 'deletion-1' is of something else"):
        house.deletions.delete_sample(second, "deletion-1")
    with pytest.raises(Conflict, match="is of something else"):
        house.deletions.delete_contributor("ann", "deletion-1")


def test_a_loop_that_was_not_told_is_told_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(house.events, "ask", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            house.forget(picture)
    assert house.events.read("pets") == []

    house.deletions.renew()
    house.deletions.renew()

    assert [event.kind for event in house.events.read("pets")] == ["deletion.requested"]


@pytest.mark.usefixtures("model")
def test_what_is_not_there_is_not_found(house: House) -> None:
    with pytest.raises(NotFound, match="picture 9 is unknown"):
        house.forget(9)
    with pytest.raises(NotFound, match="contributor 'eve' is unknown"):
        house.deletions.delete_contributor("eve", "deletion-1")
    with pytest.raises(InvalidInput, match="no contributor is named"):
        house.deletions.delete_contributor("", "deletion-1")
    with pytest.raises(NotFound, match="deletion 'deletion-1' is unknown"):
        house.deletions.report("deletion-1")
    with pytest.raises(NotFound, match="deletion 'deletion-1' of model 'pets' is unknown"):
        house.erasure.rows("pets", "deletion-1")


def test_who_has_given_nothing_is_forgotten_at_once(house: House, model: Model) -> None:
    create_key(house.database, "eve", [Scope.FEEDBACK], trusted=False)

    deletion = house.deletions.delete_contributor("eve", "deletion-1")

    assert deletion.state is DeletionState.COMPLETED
    assert house.events.read(model.name) == []


def test_a_search_finds_what_is_left_wherever_it_is(house: House) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    row = house.picture(picture)
    assert row is not None
    deletion = house.deletions.delete_contributor("ann", "deletion-1").id
    house.clock.passed += 10
    house.erasure.rows("pets", deletion)
    clean = house.deletions.report(deletion)["search"]

    folder = house.run("late")
    begin = "x" * ((1 << 20) - 40)  # files are read by the mebibyte, and the digest lies on the border
    (folder / "report.json").write_text(begin + json.dumps({"picture": f"sha256:{row.content_digest}"}))
    (folder / f"{row.pixel_digest}.png").touch()
    house.capture(1, "bob", seed=1)
    with house.database.begin() as session:
        session.execute(update(PredictionRow).values(contributor="ann"))
    found = house.deletions.report(deletion)["search"]["found"]

    assert clean["found"] == {}
    assert clean["digests"] == 2
    assert clean["tables"] > 15
    assert clean["rows"] > 0
    assert set(found) == {
        "observations.content_digest",
        "observations.pixel_digest",
        "predictions.contributor",
        str(folder / "report.json"),
        str(folder / f"{row.pixel_digest}.png"),
        *(str(path) for path in house.folders.blobs.glob("*/*/*")),
    }


def test_all_without_a_key_are_one_contributor(house: House) -> None:
    house.capture(2, ANONYMOUS, seed=1)

    assert erase_contributor(house, ANONYMOUS)["observations"] == 2
    assert house.count(SnapshotSampleRow) == 0
