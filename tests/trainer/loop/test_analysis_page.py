"""The page of the analysis: nothing of it is lost, hostile names are text, and it can be read on a phone."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from services.trainer.data.report import Histogram, Summary
from services.trainer.loop.analysis_document import (
    Analysis,
    ClassShare,
    Consent,
    Contributor,
    CycleCost,
    Delay,
    Detector,
    ErrorDrift,
    Look,
    Quality,
    Queue,
    ShiftedClass,
    ToldAlarm,
    VersionAccuracy,
)
from services.trainer.loop.analysis_page import CLASSES, draw_curve, render_analysis
from tests.end_to_end.test_page import ARGUMENTS
from tests.gateway.test_page_loop import CONTRASTS

CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>alert(1)</script>"
LONG = "a_label_with_a_very_long_name_of_its_own_that_no_line_can_hold"
EMPTY = Analysis(
    model="empty", create_time="2026-01-02T03:04:05.678Z", confidence=0.95, accuracy=[], reported=None, detectors=[],
    alarms=[], quality=None, contributors=[], cost=None,
    queue=Queue(to_review=0, states={}, quarantined={}, accepted=0, accepted_since=0),
)  # fmt: skip


def look(hour: int, near: float, *, alarm: bool = False) -> Look:
    return Look(time=f"2026-01-01T{hour:02}:00:00.000Z", level=0.001, threshold=0.0003, alarm=alarm, nearness=near)


def detector(kind: str, *looks: Look) -> Detector:
    return Detector(kind=kind, version=3, first_draw=1, last_draw=900, looks=list(looks))


def version(number: int, estimate: float | None, *, serves: bool = False) -> VersionAccuracy:
    return VersionAccuracy(
        version=number, serves=serves, estimate=estimate, low=estimate and estimate - 0.04,
        high=estimate and estimate + 0.03, judged=312 if estimate else 0, drawn=900, answered=12_345,
        captured={"RANDOM": 900, "LOW_CONFIDENCE": 210, "RARE_CLASS": 33}, dropped={"QUEUE_FULL": 4, "TRAINER_AWAY": 2},
        consent=Consent(agreed=20, said=50),
    )  # fmt: skip


FULL = EMPTY.model_copy(
    update={
        "model": "cifar10",
        "accuracy": [version(1, 0.72), version(2, None), version(3, 0.81, serves=True)],
        "reported": Consent(agreed=40, said=100),
        "detectors": [
            detector("label_shift", *(look(hour, 0.1 + 0.04 * hour) for hour in range(12))),
            detector("softmax_shift", look(0, 0.2), look(5, 1.3, alarm=True), look(6, 0.1), look(9, 0.6)),
            detector("embedding_shift", look(0, 0.4), look(7, 0.9), look(9, 2.0, alarm=True)),
            detector("error_drift", look(3, 0.3).model_copy(update={"level": 0.3, "threshold": 1.0})),
        ],
        "label_shift": [
            ClassShare(label="cat", reference=0.1, recent=0.31, weight=2.9, low=2.2, high=3.4),
            ClassShare(label=LONG, reference=0.1, recent=0.05, weight=0.4, low=0.1, high=0.8),
            ClassShare(label="dog", reference=0.8, recent=0.64, weight=None, low=None, high=None),
        ],
        "softmax_shift": [ShiftedClass(label=LONG, distance=0.31, p_value=1e-5)],
        "embedding_discrepancy": 0.0123,
        "error_drift": ErrorDrift(
            baseline=0.19,
            run_length=12_000,
            judged=312,
            delays=[Delay(drop=0.01, draws=None), Delay(drop=0.05, draws=640), Delay(drop=0.1, draws=170)],
        ),
        "alarms": [
            ToldAlarm(kind="softmax_shift", time="2026-01-01T05:00:00+00:00", level=1e-7, threshold=0.0003),
            ToldAlarm(kind="error_drift", time="2025-12-30T05:00:00+00:00", level=1, threshold=1),
        ],
        "quality": Quality(
            time="2026-01-01T09:00:00.000Z",
            sample_count=1000,
            formats={"PNG": 700, "JPEG": 300},
            widths=Summary(least=8, median=32, largest=4000),
            heights=Summary(least=8, median=32, largest=3000),
            sizes={"32x32": 900, "4000x3000": 100},
            brightness=Histogram(largest=255, counts=[1, 4, 9, 20, 9, 5, 0, 1]),
            contrast=Histogram(largest=128, counts=[9, 4, 2, 1]),
            problems={"duplicate": 12, "near-duplicate": 3},
            states={"CAPTURED": 900, "ACCEPTED": 100},
        ),
        "queue": Queue(
            to_review=41,
            states={"CAPTURED": 900, "ACCEPTED": 250, "QUARANTINED": 7},
            quarantined={"NEIGHBOURS_DISAGREE": 5, "NEAR_COPY": 2},
            accepted=250,
            accepted_since=40,
        ),
        "contributors": [
            Contributor(name="ada", accuracy=0.995, labels=200, trusted=True),
            Contributor(
                name="somebody.with.a.long.name@the-longest-of-all-hosts.example.org",
                accuracy=0.41,
                labels=33,
                trusted=False,
            ),
        ],
        "cost": CycleCost(
            value=3.5,
            cost=1.706,
            pays=True,
            decides=False,
            errors_avoided=350,
            cost_per_error=0.01,
            seconds=60,
            price_per_second=0.0001,
            labels=85,
            price_per_label=0.02,
        ),
    }
)


class Text(HTMLParser):
    """The words of a page, with one blank between them, and the names of its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._words: list[str] = []
        self.feed(html.partition("</style>")[2])
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self._words.append(data)


def test_everything_that_is_known_is_on_the_page() -> None:
    text = Text(render_analysis(FULL)).text

    for words in (
        "81.0 % live accuracy, version 3",
        "Version 2 not measured yet",
        "312 of 900 draws judged, of 12,345 answers; 900 kept as random, 210 kept as low confidence, 33 kept as rare "
        "class, 6 lost (queue full 4, trainer away 2); users agreed with 20 of 50",
        "40.0 % of 100 words on answers said that they were right. Biased: people report mistakes",
        "Probabilities 2026-01-01 05:00 UTC 1e-07 0.0003",
        "1 of 4 detectors with an alarm",
        "1 point more than 10,000 5 points 640 judged draws 10 points 170 judged draws",
        "cat 10.0 % 31.0 % 2.9",
        "dog 80.0 % 64.0 % unknown",
        "Level 0.3; there is an alarm at 1.",
        "Maximum mean discrepancy 0.0123",
        "neighbours disagree 5 near copy 2",
        "ada trusted 200 99.5 %",
        "350 mistakes avoided, at 0.01 each 3.5",
        "It pays 1.79 The policy does not heed the price.",
        "duplicate 12 near-duplicate 3",
        "width 8 32 4,000",
    ):
        assert words in text.replace("\N{NO-BREAK SPACE}", " "), words


def test_a_page_about_nothing_says_so() -> None:
    text = Text(render_analysis(EMPTY)).text

    for words in (
        "Nothing was drawn yet.",
        "None so far.",
        "Too few answers were drawn",
        "Nobody has given a label yet.",
    ):
        assert words in text
    assert "Not reckoned" in text


def test_hostile_names_are_text_and_the_page_loads_nothing() -> None:
    hostile = FULL.model_copy(
        update={
            "model": HOSTILE,
            "contributors": [Contributor(name=HOSTILE, accuracy=0.5, labels=1, trusted=False)],
            "label_shift": [ClassShare(label=HOSTILE, reference=0, recent=0, weight=1, low=1, high=1)],
            "softmax_shift": [ShiftedClass(label=HOSTILE, distance=0, p_value=0)],
            "alarms": [ToldAlarm(kind=HOSTILE, time="2026-01-01T05:00:00Z", level=0, threshold=0)],
        }
    )
    page = render_analysis(hostile)
    read = Text(page)

    assert "script" not in read.names
    assert read.text.count(HOSTILE) == 5
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|http:|https:", page)


def test_of_many_classes_those_are_shown_that_have_changed_most() -> None:
    shares = [
        ClassShare(label=f"class {number}", reference=0, recent=0, weight=1 + number / 100, low=0, high=50)
        for number in range(100)
    ]
    text = Text(render_analysis(FULL.model_copy(update={"label_shift": shares}))).text

    assert f"The {CLASSES} that have changed most, of 100." in text
    assert "class 99 " in text
    assert "class 69 " not in text


def test_a_curve_rises_with_nearness_and_goes_by_time() -> None:
    curve = draw_curve(detector("label_shift", look(0, 0.0), look(3, 1.0, alarm=True), look(12, 0.5)))

    assert curve.points == "0.00,100.00 25.00,20.00 100.00,60.00"
    assert curve.threshold == pytest.approx(20)
    assert curve.alarms == [(25.0, pytest.approx(20))]
    assert not curve.alarm


def test_a_single_look_is_in_the_middle() -> None:
    assert draw_curve(detector("label_shift", look(0, 0.5))).points == "50.00,60.00"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone(scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "analysis.html"
    file.write_text(render_analysis(FULL))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(file.as_uri())
        contrasts = [(name, value) for name, value in page.evaluate(CONTRASTS.replace("#loop", "main")) if value < 4.5]
        width, beyond = page.evaluate("document.documentElement.scrollWidth"), _beyond(page)
        browser.close()

    assert (width, beyond) == (360, [])
    assert contrasts == []


def _beyond(page: Page) -> list[str]:
    """Return the tables and texts that end to the right of the screen."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('main *:not(svg *)')]"
        ".filter((each) => each.getBoundingClientRect().right > 360).map((each) => each.outerHTML.slice(0, 80))"
    )
    return found
