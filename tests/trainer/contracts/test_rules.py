"""Sentences of rules: each rule that the loop knows has one, here and on the page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from services.trainer import loop
from services.trainer.contracts.rules import RULES, explain, explain_declined
from services.trainer.loop.payloads import PromotionWished, RejectionWished, RollbackWished, TriggerWished, Wish
from services.trainer.loop.values import GateOutcome, Outcome, Reason, Ruling, TrialVerdict

PAGE = Path(gateway.__file__).parent / "page" / "loop.js"
PARTS = ("gate", "plan", "stages", "trial", "versions")
NO_RULES = {
    *(*GateOutcome, *Outcome, *Reason, *TrialVerdict),
    *("CANCELLED", "SUCCEEDED", "SHADOW", "CANARY"),
    "EVIDENCE",  # passes
    "DISK_FULL",  # pauses the capture
} - {"DELETION", "NO_TRAFFIC"}
WISH = "wish-of-a-test"


def rules() -> Iterator[str]:
    """Yield the rules that are written in the modules which decide."""
    for part in PARTS:
        text = (Path(loop.__file__).parent / f"{part}.py").read_text()
        for node in ast.walk(ast.parse(text)):
            value = node.value if isinstance(node, ast.Constant) else ""
            if isinstance(value, str) and re.fullmatch("[A-Z][A-Z_]+", value):
                yield value


def test_every_rule_that_the_loop_decides_by_has_a_sentence() -> None:
    assert set(rules()) - NO_RULES - set(RULES) == set()


def test_every_rule_that_has_a_sentence_has_one_on_the_page() -> None:
    text = PAGE.read_text()
    table = text[text.index("const RULES") : text.index("const ALARMS")]

    assert set(RULES) - set(re.findall(r"^  ([A-Z_]+): ", table, re.MULTILINE)) == set()


@pytest.mark.parametrize("rule", RULES)
def test_no_sentence_shows_a_rule_or_a_place_that_is_not_filled(rule: str) -> None:
    sentence = explain(Ruling(rule=rule, subject="guard.of_a_test", figure=3.25, bound=2.5))

    assert not re.search(r"[{}]|[A-Z]+_[A-Z]+", sentence)


@pytest.mark.parametrize(
    ("ruling", "words"),
    [
        (
            Ruling(rule="CORRUPTED_DROP", subject="guard.corrupted_drop", figure=0.0721, bound=0.05),
            "on spoilt pictures it is worse by 0.0721, and guard.corrupted_drop is 0.05; raise guard.corrupted_drop",
        ),
        (
            Ruling(rule="NOT_MEASURED", subject="guard.corrupted_drop"),
            "guard.corrupted_drop was not measured before the gate ended",
        ),
        (Ruling(rule="DISK_FULL", subject="MakeSnapshot"), "DISK_FULL (MakeSnapshot); the trainer's log says more"),
    ],
    ids=lambda value: value.rule if isinstance(value, Ruling) else "",
)
def test_a_refusal_names_what_was_measured_its_limit_and_what_to_change(ruling: Ruling, words: str) -> None:
    assert explain(ruling).startswith(words)


@pytest.mark.parametrize(
    ("wish", "rule", "words"),
    [
        (TriggerWished(request_id=WISH), "CYCLE_UNDER_WAY", "a new cycle: a cycle is under way; wait for its end"),
        (
            PromotionWished(request_id=WISH, version=4),
            "TAINTED",
            "the promotion of version 4: version 4 has learnt from",
        ),
        (
            RejectionWished(request_id=WISH, version=4),
            "NO_CANDIDATE",
            "the rejection of version 4: no cycle is under way that has",
        ),
        (RollbackWished(request_id=WISH), "NO_VERSION_BEFORE", "the rollback: no other version is ready"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in RULES else "",
)
def test_what_is_declined_is_told_in_words_of_who_asked(wish: Wish, rule: str, words: str) -> None:
    sentence = explain_declined("pets", wish, rule)

    assert sentence.startswith(f"the loop of model 'pets' declines {words}")
    assert "; " in sentence
