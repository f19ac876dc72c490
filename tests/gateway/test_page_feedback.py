"""Feedback on the page in a real browser, at a real gateway before a trainer that writes down what it is asked."""

import shutil

import pytest
from playwright.async_api import async_playwright, expect

from aimass.trainer.v1 import capture_pb2, feedback_pb2
from tests.end_to_end.pictures import plain
from tests.end_to_end.test_page import ARGUMENTS
from tests.gateway.door import LearningTrainer

CHROMIUM = shutil.which("chromium")
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


async def test_one_click_says_that_an_answer_is_right(browser, door):
    card = await answered(browser, door)
    await card.locator(".feedback .right").click()

    await expect(card.locator(".feedback p")).to_have_text("Thank you. It counts once somebody else says the same.")
    (heard,) = door.trainer.heard
    (captured,) = door.trainer.received
    assert heard.request == feedback_pb2.SendFeedbackRequest(prediction_id=captured.prediction_id, correct=True)


async def test_one_choice_says_what_it_is_and_brings_a_picture_that_was_not_captured(browser, open_gateway):
    trainer = LearningTrainer()
    trainer.policies = capture_pb2.CapturePolicies(policies=[capture_pb2.CapturePolicy(model="tiny")])
    door = await open_gateway(trainer)
    card = await answered(browser, door)
    choice = card.locator(".feedback select")
    assert await choice.locator("option").all_text_contents() == ["It is …", "green", "blue", "Something else …"]
    await choice.select_option("blue")

    await expect(card.locator(".feedback p")).to_have_text("Thank you. It counts once somebody else says the same.")
    (heard,) = trainer.heard
    assert (heard.request.label, heard.request.image, heard.request.model) == ("blue", RED, "tiny")


async def test_a_label_that_the_model_does_not_know_can_be_written(browser, door):
    card = await answered(browser, door)
    await card.locator(".feedback select").select_option("Something else …")
    await card.locator(".feedback input").fill("violet")
    await card.locator(".feedback input").press("Enter")

    await expect(card.locator(".feedback p")).to_contain_text("Thank you")
    assert [each.request.label for each in door.trainer.heard] == ["violet"]


async def test_a_refusal_shows_the_servers_sentence_and_lets_the_user_try_again(browser, door):
    card = await answered(browser, door)
    await door.trainer.stop()
    await card.locator(".feedback .right").click()

    await expect(card.locator(".feedback p")).to_contain_text("try again")
    await expect(card.locator(".feedback .right")).to_be_enabled()
