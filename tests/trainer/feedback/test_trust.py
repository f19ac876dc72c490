"""The verdict, rule by rule."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.trust import ObservationFacts, Support, Verdict, VoteFact, judge, support

POLICY = TrustPolicy()
KNOWN = frozenset({"cat", "dog", "cow"})


def says(label: str, name: str = "ann", *, trusted: bool = False, blocked: bool = False) -> VoteFact:
    kind = VoteKind.LABEL if label in KNOWN else VoteKind.PROPOSAL
    return VoteFact(name, kind, label, trusted, blocked)


def reviewer(kind: VoteKind, name: str = "rex") -> VoteFact:
    return VoteFact(name, kind, trusted=True)


def facts(*votes: VoteFact, posterior: float = 0.95, **changes: object) -> ObservationFacts:
    """Of a picture to learn from, whose neighbours agree with every label; ann and ben are known."""
    named = {each.label for each in votes if each.label}
    base = ObservationFacts(
        role=Role.TRAIN,
        predicted="cat",
        votes=votes,
        label_posterior=dict.fromkeys(named, posterior),
        encoder=True,
        embedded=True,
        lift=dict.fromkeys(KNOWN, 2.0),
        class_members=dict.fromkeys(KNOWN, 500),
        findings=frozenset(),
        known_labels=KNOWN,
        proven=frozenset({"ann", "ben"}),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def verdict(*votes: VoteFact, posterior: float = 0.95, **changes: object) -> tuple[State, str, str]:
    found = judge(facts(*votes, posterior=posterior, **changes), POLICY)
    return found.state, found.label, found.reason


ENOUGH = (State.ACCEPTED, "dog", "")


def test_one_vote_of_who_is_known_is_enough_where_the_neighbours_agree() -> None:
    assert verdict(says("dog")) == ENOUGH


def test_one_voice_of_a_stranger_makes_no_sample_however_well_it_fits() -> None:
    stranger = says("dog", "eve")

    assert verdict(stranger, posterior=0.8) == (State.PENDING, "dog", "NEEDS_VOTES")
    assert judge(facts(stranger), POLICY).detail == (
        "1 say dog, whose neighbours have that label 2.0 times as often as others; it takes 2, or 1 whose labels "
        "others have confirmed before"
    )
    assert verdict(stranger, says("dog", "finn")) == ENOUGH
    assert verdict(stranger, says("dog")) == ENOUGH


def test_the_word_of_who_does_harm_is_not_counted() -> None:
    harm = {"harmful": frozenset({"eve"})}

    assert verdict(says("dog", "eve"), says("dog", "finn"), **harm) == (State.PENDING, "dog", "NEEDS_VOTES")
    assert verdict(says("dog", "eve"), says("dog", "finn"), says("dog", "gus"), **harm) == ENOUGH


def test_without_a_word_a_picture_is_only_captured() -> None:
    assert verdict() == (State.CAPTURED, "", "")


def test_words_of_the_blocked_count_for_nothing() -> None:
    assert verdict(says("dog", blocked=True)) == (State.QUARANTINED, "", "CONTRIBUTOR_BLOCKED")
    assert verdict(says("cow", "liar", blocked=True), says("dog")) == ENOUGH
    assert verdict(says("dog", "liar", trusted=True, blocked=True), says("cow"), encoder=False)[2] == "NEEDS_VOTES"


def test_a_reviewer_decides_against_any_number_and_any_finding() -> None:
    crowd = [says("cow", f"user {number}") for number in range(9)]
    against = {"findings": frozenset({"LIKELY_WRONG", "CONTRIBUTOR_HARMS"}), "lift": {"dog": 0.0}, "embedded": False}

    assert verdict(*crowd, says("dog", "rex", trusted=True), **against) == ENOUGH
    assert verdict(*crowd, reviewer(VoteKind.REJECT)) == (State.REJECTED, "", "")
    assert verdict(*crowd, reviewer(VoteKind.UNDECIDABLE)) == (State.REJECTED, "", "UNDECIDABLE")


def test_not_even_a_reviewer_lets_a_near_copy_of_what_judges_be_learnt() -> None:
    copy = {"findings": frozenset({"NEAR_COPY"})}
    rex = says("dog", "rex", trusted=True)

    assert verdict(says("cow"), rex, **copy) == (State.QUARANTINED, "dog", "NEAR_COPY")
    assert verdict(reviewer(VoteKind.REJECT), **copy) == (State.REJECTED, "", "")
    assert verdict(rex, role=Role.JUDGE, **copy) == ENOUGH


def test_reviewers_that_differ_send_it_to_quarantine() -> None:
    both = [says("dog", "rex", trusted=True), says("cow", "roy", trusted=True)]

    assert verdict(*both)[::2] == (State.QUARANTINED, "REVIEWERS_DIFFER")
    assert verdict(both[0], reviewer(VoteKind.REJECT, "roy"))[::2] == (State.QUARANTINED, "REVIEWERS_DIFFER")
    assert judge(facts(*both), POLICY).detail == "reviewers say cow, dog"


def test_a_reviewer_who_cannot_tell_does_not_contradict_one_who_can() -> None:
    assert verdict(says("dog", "rex", trusted=True), reviewer(VoteKind.UNDECIDABLE, "roy")) == ENOUGH
    assert verdict(reviewer(VoteKind.REJECT), reviewer(VoteKind.UNDECIDABLE, "roy")) == (State.REJECTED, "", "")


def test_a_label_that_the_model_does_not_know_is_proposed() -> None:
    assert verdict(says("yak")) == (State.PROPOSED, "yak", "")
    assert verdict(says("yak", "rex", trusted=True), says("dog")) == (State.PROPOSED, "yak", "")


def test_of_several_labels_the_likeliest_leads() -> None:
    votes = [says("cow"), says("dog", "ben"), says("yak", "cid")]

    assert verdict(*votes, label_posterior={"cow": 0.05, "dog": 0.9, "yak": 0.05}) == ENOUGH
    assert verdict(*votes, label_posterior={"cow": 0.1, "dog": 0.2, "yak": 0.7}) == (State.PROPOSED, "yak", "")


def test_that_an_answer_is_wrong_is_no_label() -> None:
    assert verdict(VoteFact("ann", VoteKind.WRONG)) == (State.PENDING, "", "NEEDS_LABEL")
    assert verdict(reviewer(VoteKind.WRONG)) == (State.PENDING, "", "NEEDS_LABEL")


@pytest.mark.parametrize("votes", [(says("dog"),), tuple(says("dog", f"user {number}") for number in range(9))])
def test_what_users_say_never_judges_a_model(votes: tuple[VoteFact, ...]) -> None:
    assert verdict(*votes, role=Role.JUDGE) == (State.PENDING, "dog", "WAITS_FOR_REVIEW")
    assert verdict(*votes, says("cow", "rex", trusted=True), role=Role.JUDGE) == (State.ACCEPTED, "cow", "")
    assert verdict(role=Role.JUDGE) == (State.CAPTURED, "", "")


def test_it_waits_until_its_neighbours_are_known() -> None:
    assert verdict(says("dog"), embedded=False) == (State.PENDING, "dog", "WAITS_FOR_EMBEDDING")


@pytest.mark.parametrize("finding", ["NEAR_COPY", "CONTRIBUTOR_HARMS", "LIKELY_WRONG"])
def test_a_finding_sends_it_to_quarantine(finding: str) -> None:
    votes = [says("dog", f"user {number}") for number in range(5)]

    assert verdict(*votes, findings=frozenset({finding})) == (State.QUARANTINED, "dog", finding)


def test_without_neighbours_to_ask_two_must_agree() -> None:
    for nothing in ({"encoder": False, "embedded": False}, {"class_members": {"dog": 44}}, {"class_members": {}}):
        assert verdict(says("dog"), **nothing) == (State.PENDING, "dog", "NEEDS_VOTES")
        assert verdict(says("dog"), says("dog", "ben"), **nothing) == ENOUGH


def test_a_class_with_three_times_the_neighbours_is_large_enough_to_be_asked() -> None:
    assert verdict(says("dog"), class_members={"dog": 45}) == ENOUGH


def test_a_label_that_neighbours_leave_too_unlikely_is_held_up() -> None:
    two = [says("dog"), says("dog", "ben")]
    against = {"cat": 4.0, "dog": 0.9}

    assert verdict(*two, lift=against, posterior=0.7) == (State.QUARANTINED, "dog", "NEIGHBOURS_DISAGREE")
    assert verdict(*two, lift=against, posterior=0.9) == ENOUGH
    assert verdict(says("dog", "eve"), lift=against, posterior=0.9)[2] == "NEEDS_VOTES"
    detail = judge(facts(*two, posterior=0.7, lift=against), POLICY).detail
    assert detail == (
        "by all votes on a picture whose neighbours have that label 0.9 times as often as others, it is dog with "
        "probability 0.70; it takes 0.8"
    )


def test_neighbours_bear_out_what_is_as_frequent_among_them_and_most_what_nothing_exceeds() -> None:
    lift = {"cat": 4.0, "dog": 1.0, "cow": 0.9, "yak": 9.0}
    members = {"cat": 500, "dog": 45, "cow": 45, "emu": 45, "yak": 44}
    found = {"cat": Support.SOME, "dog": Support.SOME, "cow": Support.NONE, "emu": Support.NONE}

    assert support(lift, members, POLICY) == found  # nobody can say how rare yaks are
    assert support({**lift, "yak": 0.0}, members, POLICY) == {**found, "cat": Support.MOST}


def test_votes_must_make_the_label_likely_enough() -> None:
    assert verdict(says("dog"), posterior=0.79) == (State.PENDING, "dog", "VOTES_DIFFER")
    assert verdict(says("dog"), posterior=0.8 - 1e-9) == ENOUGH


def test_the_policy_sets_the_numbers() -> None:
    strict = TrustPolicy(quorum=2, quorum_unknown=3, posterior=0.99, neighbours=5)
    one, two = says("dog"), says("dog", "ben")

    assert judge(facts(one), strict).reason == "NEEDS_VOTES"
    assert judge(facts(one, two), strict).reason == "VOTES_DIFFER"
    assert judge(facts(one, two, posterior=0.995), strict).state is State.ACCEPTED
    assert judge(facts(one, two, class_members={"dog": 14}), strict).detail.endswith("it takes 3")


VOTES = st.lists(
    st.builds(
        VoteFact,
        st.sampled_from(["ann", "ben", "cid", "rex"]),
        st.sampled_from([VoteKind.WRONG, VoteKind.REJECT, VoteKind.UNDECIDABLE]),
        st.just(""),
        st.booleans(),
        st.booleans(),
    )
    | st.builds(
        says, st.sampled_from(["cat", "dog", "yak"]), st.sampled_from(["ann", "ben", "cid", "rex"]),
        trusted=st.booleans(), blocked=st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


@given(VOTES, st.sampled_from(Role), st.booleans(), st.booleans(), st.floats(0, 3))
def test_nothing_becomes_a_sample_that_nobody_who_counts_has_said(
    votes: list[VoteFact], role: Role, encoder: bool, embedded: bool, lift: float
) -> None:
    found = judge(facts(*votes, role=role, encoder=encoder, embedded=embedded, lift={"cat": lift}), POLICY)

    said = {each.label for each in votes if not each.blocked}
    reviewed = {each.label for each in votes if each.trusted and not each.blocked}
    if found.state is State.ACCEPTED:
        assert found.label in said & KNOWN
        assert role is Role.TRAIN or found.label in reviewed
    assert isinstance(found, Verdict)
    assert found.label == "" or found.label in said
