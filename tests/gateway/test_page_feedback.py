"""Feedback on the page in a real browser, at a real gateway before a trainer that writes down what it is asked."""

import re
import shutil

import pytest
from playwright.async_api import async_playwright, expect

from aimass.trainer.v1 import capture_pb2, feedback_pb2
from services.trainer.feedback import trust
from tests.end_to_end.pictures import plain
from tests.end_to_end.test_page import ARGUMENTS
from tests.gateway.door import LearningTrainer

CHROMIUM = shutil.which("chromium")
BECOMES = [
    *((number, "") for number in feedback_pb2.Observation.State.values() if number),
    *(
        (feedback_pb2.Observation.STATE_PENDING, reason)
        for reason in (
            trust.NEEDS_LABEL,
            trust.NEEDS_VOTES,
            trust.VOTES_DIFFER,
            trust.WAITS_FOR_EMBEDDING,
            trust.WAITS_FOR_REVIEW,
        )
    ),
]
RED = plain((255, 0, 0))
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


@pytest.fixture
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


async def answered(browser, door):
    """Return the card of a picture that was answered."""
    page = await browser.new_page(reduced_motion="reduce")
    await page.goto(str(door.http.base_url))
    await page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": RED})
    card = page.locator("#results > .card[data-state=done]")
    await expect(card).to_have_count(1, timeout=60_000)
    return card


def said(trainer):
    """Return what the trainer has heard of answers; the page asks for the loop as well."""
    return [each.request for each in trainer.heard if isinstance(each.request, feedback_pb2.SendFeedbackRequest)]


async def test_one_click_says_that_an_answer_is_right(browser, door):
    card = await answered(browser, door)
    await card.locator(".feedback .right").click()

    await expect(card.locator(".feedback p")).to_have_text("Thank you. It counts once enough others say the same.")
    (captured,) = door.trainer.received
    assert said(door.trainer) == [feedback_pb2.SendFeedbackRequest(prediction_id=captured.prediction_id, correct=True)]


@pytest.fixture
async def forgetful(open_gateway):
    """A gateway that captures nothing."""
    trainer = LearningTrainer()
    trainer.policies = capture_pb2.CapturePolicies(policies=[capture_pb2.CapturePolicy(model="tiny")])
    return await open_gateway(trainer)


async def test_one_click_names_the_label_of_an_answer_that_was_not_captured(browser, forgetful):
    card = await answered(browser, forgetful)
    best = await card.locator(".top-label").text_content()
    await card.locator(".feedback .right").click()

    await expect(card.locator(".feedback p")).to_contain_text("Thank you")
    (request,) = said(forgetful.trainer)
    assert (request.WhichOneof("verdict"), request.label) == ("label", best)
    assert (request.image, request.model) == (RED, "tiny")


async def test_one_choice_says_what_it_is_and_brings_a_picture_that_was_not_captured(browser, forgetful):
    card = await answered(browser, forgetful)
    choice = card.locator(".feedback select")
    assert await choice.locator("option").all_text_contents() == ["It is …", "green", "blue", "Something else …"]
    await choice.select_option("blue")

    await expect(card.locator(".feedback p")).to_have_text("Thank you. It counts once enough others say the same.")
    (request,) = said(forgetful.trainer)
    assert (request.label, request.image, request.model) == ("blue", RED, "tiny")


async def test_whatever_becomes_of_a_picture_is_told_in_a_sentence_of_its_own(browser, door):
    card = await answered(browser, door)
    told = set()
    for state, reason in BECOMES:
        door.trainer.state, door.trainer.state_reason = state, reason
        await card.page.reload()
        await card.page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": RED})
        await card.locator(".feedback .right").click()
        await expect(card.locator(".feedback p")).to_have_text(re.compile(r"^Thank you\. .+\.$"))
        told.add(await card.locator(".feedback p").text_content())

    assert len(told) == len(BECOMES), told


async def test_a_label_that_the_model_does_not_know_can_be_written(browser, door):
    card = await answered(browser, door)
    await card.locator(".feedback select").select_option("Something else …")
    await card.locator(".feedback input").fill("violet")
    await card.locator(".feedback input").press("Enter")

    await expect(card.locator(".feedback p")).to_contain_text("Thank you")
    assert [each.label for each in said(door.trainer)] == ["violet"]


async def test_a_refusal_shows_the_servers_sentence_and_lets_the_user_try_again(browser, door):
    card = await answered(browser, door)
    await door.trainer.stop()
    await card.locator(".feedback .right").click()

    await expect(card.locator(".feedback p")).to_contain_text("try again")
    await expect(card.locator(".feedback .right")).to_be_enabled()
