"""The loop's strip on the page in a real browser, at a real gateway before a trainer that tells what it is given."""

import shutil

import pytest
from playwright.async_api import async_playwright, expect

from aimass.trainer.v1 import loop_pb2 as pb
from services.common.errors import NotFound
from services.trainer.loop.alarms import DETECTORS
from tests.aimass.loop_service import START, happened, standing
from tests.end_to_end.test_page import ARGUMENTS
from tests.gateway.door import LearningTrainer

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


class LoopTrainer(LearningTrainer):
    """Tells of a loop what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = standing()
        self.events = [
            happened(1, "cycle.started", '{"reason": "BY_HAND"}', 5),
            happened(2, "cycle.started", '{"reason": "SCHEDULE"}', 6),
            happened(3, "snapshot.made", "{}", 6),
            happened(4, "cycle.ended", '{"outcome": "REFUSED", "ruling": {"rule": "CLASS_DROP"}}', 6),
            happened(5, "cycle.started", '{"reason": "DRIFT"}'),
            happened(6, "candidate.published", '{"version": 4}'),
        ]

    async def GetLoop(self, request, context):
        """Tell how it stands."""
        if self.loop is None:
            raise NotFound(f"model {request.model!r} is unknown; name one that is served")
        return self.loop

    async def ListEvents(self, request, context):
        """List what has happened."""
        self._hear(request, context)
        return pb.ListEventsResponse(
            events=[each for each in self.events if each.number > request.after and request.kind in ("", each.kind)]
        )


@pytest.fixture
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def trainer():
    return LoopTrainer()


@pytest.fixture
async def opened(browser, open_gateway, trainer):
    """A function that opens the page, whose timers run as the test says."""
    door = await open_gateway(trainer)
    complaints = []

    async def opened(**options):
        page = await browser.new_page(reduced_motion="reduce", **options)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.clock.install()
        await page.goto(str(door.http.base_url))
        await expect(page.locator("#model")).to_have_attribute("data-state", "ready", timeout=60_000)
        return page

    yield opened
    assert complaints == []


async def lines(page, place):
    """Return what the lines of *place* say, without their times."""
    items = await page.locator(f"#loop .{place} li").all()
    return [
        (await item.text_content()).removeprefix(await item.locator("time").text_content()).strip() for item in items
    ]


async def test_the_strip_tells_accuracy_stage_alarms_and_events(opened):
    page = await opened()
    await expect(page.locator("#loop")).to_be_visible()

    assert await page.locator("#loop .live").text_content() == "78.1% of version 3's answers are right"
    assert await page.locator("#loop .live-detail").text_content() == (
        "Between 74.0% and 81.9%, by 312 reviewed pictures. 12 more reviews would help to judge the new version."
    )
    assert await page.locator("#loop .stage").text_content() == "Judging version 4 against version 3."
    steps = page.locator("#loop .steps li")
    assert await steps.evaluate_all("each => each.map((step) => step.dataset.step)") == [
        *("done", "done", "done", "now", "to-come", "to-come")
    ]
    assert await lines(page, "alarms") == ["Users send other kinds of pictures than before."]
    assert await lines(page, "events") == [
        "Version 4 was made; nobody sees it yet.",
        "Cycle 7 began: something has drifted.",
        "Cycle 6 ended: refused, since it is worse on one class.",
        "Cycle 6 began: it was time.",
    ]


async def test_each_detector_has_its_sentence(opened, trainer):
    trainer.loop.ClearField("alarms")
    for kind in DETECTORS[:3]:
        trainer.loop.alarms.add(kind=kind, message=f"{kind} is at 1").time.FromSeconds(START)
    page = await opened()
    await expect(page.locator("#loop")).to_be_visible()
    first = await lines(page, "alarms")
    trainer.loop.alarms[0].kind = DETECTORS[3]
    await page.clock.run_for(10_000)
    await expect(page.locator("#loop .alarms li").first).to_contain_text("It makes more mistakes than before.")

    assert first == [
        "Users send other kinds of pictures than before.",
        "Its answers are spread differently than before.",
        "The pictures look different than before.",
    ]


async def test_the_interval_is_drawn_where_it_is(opened):
    page = await opened()
    await expect(page.locator("#loop")).to_be_visible()
    drawn = await page.locator("#loop .interval").evaluate(
        """(bar) => {
            const { left, width } = getComputedStyle(bar, "::before");
            return [left, width].map((each) => parseFloat(each) / bar.clientWidth);
        }"""
    )

    assert drawn == pytest.approx([0.74, 0.079], abs=0.005)


async def test_between_two_cycles_it_tells_what_is_waited_for_and_why_the_last_one_failed(opened, trainer):
    trainer.loop.ClearField("cycle")
    trainer.loop.ClearField("live_accuracy")
    trainer.loop.to_judge_count = 0
    page = await opened()
    await expect(page.locator("#loop")).to_be_visible()

    assert await page.locator("#loop .estimate").text_content() == "Not measured yet"
    assert await page.locator("#loop .live-detail").text_content() == (
        "It takes reviews of pictures that were drawn at random."
    )
    assert await page.locator("#loop .stage").text_content() == "Nothing is being changed."
    assert await page.locator("#loop .next").text_content() == (
        "The next attempt waits for 40 of 200 new samples, or an alarm of drift. The last attempt ended without a new "
        "version: it is worse on one class (3.5 against 2)."
    )
    await expect(page.locator("#loop .interval")).to_be_hidden()
    await expect(page.locator("#loop .steps")).to_be_hidden()


async def test_news_come_by_themselves_and_only_what_is_new_is_asked_for(opened, trainer):
    page = await opened()
    await expect(page.locator("#loop")).to_be_visible()
    trainer.heard.clear()
    trainer.events += [
        happened(7, "gate.measured"),
        happened(8, "traffic.changed", '{"stable": 3}'),
        happened(9, "promoted"),
    ]
    trainer.loop.live_accuracy.version = 4
    await page.clock.run_for(10_000)

    await expect(page.locator("#loop .events li").first).to_contain_text("The new version serves.")
    await expect(page.locator("#loop .live-words")).to_contain_text("version 4's")
    assert "The traffic was changed outside the loop: version 3 serves." in (await lines(page, "events"))[1]
    assert len(await lines(page, "events")) == 5
    assert {(each.request.after, each.request.kind) for each in trainer.heard} == {(6, "")}


@pytest.mark.parametrize("loop", [None, pb.GetLoopResponse(disabled_reason="TRAINER_LOOP is off")], ids=["none", "off"])
async def test_where_there_is_no_loop_there_is_no_strip_until_there_is_one(opened, trainer, loop):
    there, trainer.loop = trainer.loop, loop
    page = await opened()
    async with page.expect_response(lambda response: response.url.endswith("/loop")):
        await page.reload()
    await expect(page.locator("#loop")).to_be_hidden()
    trainer.loop = there
    await page.clock.run_for(60_000)

    await expect(page.locator("#loop")).to_be_visible()


async def test_who_may_not_see_the_loop_has_a_page_without_it_and_without_complaints(opened, trainer):
    page = await opened(extra_http_headers={"X-Forwarded-For": "192.0.2.7"})
    async with page.expect_response(lambda response: response.url.endswith("/loop")) as asked:
        await page.clock.run_for(60_000)

    assert (await asked.value).status == 401
    await expect(page.locator("#loop")).to_be_hidden()
    await expect(page.locator("#model")).to_have_attribute("data-state", "ready")
    assert trainer.heard == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_strip_is_readable_on_a_phone(opened, trainer, scheme):
    trainer.loop.alarms[0].kind = "A_DETECTOR_WITH_A_VERY_LONG_NAME_OF_ITS_OWN"
    trainer.loop.alarms[0].message = "x" * 200
    page = await opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    await expect(page.locator("#loop")).to_be_visible()
    contrasts = await page.evaluate(CONTRASTS)

    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    assert len(contrasts) > 15
    assert [(name, value) for name, value in contrasts if value < 4.5] == []


CONTRASTS = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (colour) => channels(colour)
        .map((each) => each / 255)
        .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
        .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(colour) ? ground(element.parentElement) : colour;
    };
    const seen = (each) => each.checkVisibility() && each.textContent;
    const texts = [...document.querySelectorAll("#loop *")].filter(seen);
    return texts.map((each) => {
        const [dark, bright] = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => a - b);
        return [`${each.tagName}.${each.className}`, (bright + 0.05) / (dark + 0.05)];
    });
}"""
"""Contrast of each text to what is behind it, as WCAG 2.2 reckons it."""
