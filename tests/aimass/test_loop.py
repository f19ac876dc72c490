"""The loop on the command line, at a service that answers as it was told to."""

import json

import pytest

from aimass.client import PredictionError
from aimass.trainer.v1 import loop_pb2 as pb
from services.common.errors import InvalidInput
from tests.aimass.loop_service import happened


async def test_all_that_is_known_of_a_loop_is_shown(loop, told):
    lines = {line[:20].strip(): line[20:].strip() for line in (await loop("pets")).splitlines()}

    assert told.asked == [pb.GetLoopRequest(model="pets")]
    assert lines == {
        "pets": "its loop is on",
        "live accuracy": "78.1%, between 74.0% and 81.9% with 95% at all times; version 3, 312 reviewed draws, 4 were "
        "lost",
        "consent": "40.0% of what users said; mostly they report mistakes",
        "pictures": "250 accepted, 40 of them new; 6 pending, 5 in quarantine, 2 with labels that the model does not "
        "know",
        "would help the gate": "12 reviews",
        "cycle": "7, gate; since 2023-11-14 22:23, by DRIFT; version 4 against 3; refit loop-7",
        "gate": "evidence 1.25 of 3.50; hold-out: 9 won, 2 lost, 80 the same; live: 3 won, 1 lost, 10 the same",
        "last cycle": "6, ended without a new version; since 2023-11-14 22:13, by BY_HAND",
        "refused": "it loses more on one class",
        "waits for": "40 of 200 new samples, or an alarm of drift",
        "alarm": "2023-11-14 22:13  label_shift is at 0.1, and its threshold is 0.2",
        "policy": "abc",
    }


async def test_a_loop_that_is_off_says_why_and_what_is_not_measured_how_it_would_be(loop, told):
    told.loop = pb.GetLoopResponse(disabled_reason="TRAINER_LOOP is off; set it to on")
    shown = await loop()

    assert told.asked == [pb.GetLoopRequest(model="cifar10")]
    assert "has no loop: TRAINER_LOOP is off; set it to on" in shown
    assert "not measured yet" in shown
    assert "to review" in shown
    assert "cycle" not in shown


async def test_a_loop_is_shown_as_json(loop):
    document = json.loads(await loop("show", "pets", "--json"))

    assert (document["cycle"]["stage"], document["live_accuracy"]["draw_count"]) == ("gate", 312)


async def test_events_are_listed_page_after_page(loop, told):
    told.events = [happened(number + 1, "gate.measured") for number in range(2050)]
    told.events[3] = happened(4, "gate.decided", '{"outcome": "REFUSED", "ruling": {"figure": 0.123456}}')
    lines = (await loop("events", "pets")).splitlines()

    assert [int(line.split()[0]) for line in lines] == list(range(1, 2051))
    assert [each.after for each in told.asked] == [0, 1000, 2000]
    assert lines[3].split() == [
        *("4", "2023-11-14", "22:13:24", "cycle", "7", "gate.decided", "outcome=REFUSED", "ruling.figure=0.1235")
    ]


async def test_events_are_chosen_by_kind_and_number(loop, told):
    told.events = [happened(1, "promoted"), happened(2, "pinned"), happened(3, "promoted", cycle=0)]
    (line,) = (await loop("events", "pets", "--kind", "promoted", "--after", "1")).splitlines()

    assert line.split() == ["3", "2023-11-14", "22:13:23", "promoted"]


async def test_events_are_followed_as_json(loop, told):
    told.events = [happened(1, "promoted"), happened(2, "pinned"), happened(3, "promoted", '{"generation": 8}')]
    printed = await loop("events", "pets", "--follow", "--json", "--kind", "promoted")

    assert told.asked == [pb.WatchEventsRequest(model="pets")]
    assert [(each["number"], each["payload"]) for each in map(json.loads, printed.splitlines())] == [
        *((1, {}), (3, {"generation": 8}))
    ]


async def test_what_is_known_of_a_model_in_use_is_told_in_lines(loop, told):
    lines = {line[:13].strip(): line[13:].strip() for line in (await loop("analysis", "pets")).splitlines()}

    assert told.asked == [pb.GetAnalysisRequest(model="pets")]
    assert lines == {
        "version 2": "not measured yet; 312 of 900 draws judged, 0 lost",
        "version 3": "78.1%, between 74.0% and 81.9%; 312 of 900 draws judged, 4 lost; it serves",
        "consent": "4 of 10 words; mostly they report mistakes",
        "label shift": "no alarm; level 0.0123, threshold 0.00034",
        "error drift": "an alarm; level 1, threshold 1",
        "quarantine": "5 neighbours disagree, 1 near copy",
        "to review": "12",
        "right": "ada 95% of 40, [b] 40% of 9",
        "next cycle": "worth 10, costs 1.71: it pays",
    }


async def test_the_analysis_of_a_model_that_nobody_uses_is_short(loop, told):
    told.analysis = {
        "accuracy": [], "reported": None, "detectors": [], "queue": {"quarantined": {}, "to_review": 0},
        "contributors": [], "cost": None,
    }  # fmt: skip

    assert (await loop("analysis")).split() == ["to", "review", "0"]


async def test_the_analysis_is_written_as_a_page_and_printed_as_json(loop, told, tmp_path):
    page = tmp_path / "new" / "page.html"
    printed = await loop("analysis", "pets", "--to", page)
    document = json.loads(await loop("analysis", "pets", "--json"))

    assert page.read_text() == "<p>fine</p>"
    assert printed.endswith(f"page in {page}\n")
    assert document == told.analysis


async def test_a_page_is_a_file(loop, told, tmp_path):
    with pytest.raises(InvalidInput, match="is a folder; name a file such as"):
        await loop("analysis", "pets", "--to", tmp_path)

    assert told.asked == []


@pytest.mark.parametrize(
    ("arguments", "request_", "words"),
    [
        (
            ["trigger", "pets", "--reason", "now", "--strategy", "refit", "--request-id", "request-1"],
            pb.TriggerCycleRequest(model="pets", reason="now", strategy="refit", request_id="request-1"),
            "pets: cycle 7, gate; since ",
        ),
        (
            ["propose", "pets", "5", "--not-worse", "--request-id", "request-1"],
            pb.ProposeVersionRequest(model="pets", version=5, goal=pb.Cycle.GOAL_NOT_WORSE, request_id="request-1"),
            "pets: cycle 7, gate; since ",
        ),
        (
            ["promote", "pets", "--reason", "sure", "--request-id", "request-1"],
            pb.PromoteCandidateRequest(model="pets", version=4, reason="sure", request_id="request-1"),
            "pets: version 4 serves, event 9",
        ),
        (
            ["reject", "pets", "--version", "3", "--request-id", "request-1"],
            pb.RejectCandidateRequest(model="pets", version=3, request_id="request-1"),
            "pets: cycle 7 is ended, event 9",
        ),
        (
            ["reject", "pets", "--request-id", "request-1"],
            pb.RejectCandidateRequest(model="pets", version=0, request_id="request-1"),
            "pets: cycle 7 is ended, event 9",
        ),
        (
            ["rollback", "pets", "--reason", "worse", "--request-id", "request-1"],
            pb.RollBackRequest(model="pets", reason="worse", request_id="request-1"),
            "pets: version 2 serves again, event 9",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_hand_on_the_loop_reaches_it(loop, told, arguments, request_, words):
    printed = await loop(*arguments)

    assert printed.startswith(words)
    assert told.asked[-1] == request_


@pytest.mark.parametrize("arguments", [["trigger"], ["promote"], ["reject"], ["rollback"]], ids=lambda value: value[0])
async def test_each_call_is_another_request(loop, told, arguments):
    await loop(*arguments)
    await loop(*arguments)

    ids = [each.request_id for each in told.asked if not isinstance(each, pb.GetLoopRequest)]
    assert len(set(ids)) == 2
    assert min(map(len, ids)) >= 8


async def test_a_candidate_that_is_not_there_is_told_before_anything_is_asked_for(loop, told):
    told.loop.ClearField("cycle")
    with pytest.raises(InvalidInput, match="model 'pets' has no candidate now; name a version with --version"):
        await loop("promote", "pets")

    assert told.asked == [pb.GetLoopRequest(model="pets")]


async def test_a_refusal_is_the_services_sentence(loop):
    with pytest.raises(PredictionError, match="declines a new cycle: a cycle is under way") as caught:
        await loop("trigger", "pets", "--reason", "again")

    assert caught.value.code == "FAILED_PRECONDITION"
