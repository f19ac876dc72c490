"""The page in a real browser, against a running suite."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, suites):
    """The page of the suite of four processes; it must not complain in the browser's console."""
    complaints = []
    page = browser.new_page(reduced_motion="reduce")  # bars are measured, so they must not be on their way
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(suites["services"].url)
    yield page
    page.close()
    assert [each for each in complaints if "status of 400" not in each] == []


def card(page, state):
    page.wait_for_selector(f"#results > .card[data-state={state}]")
    return page.locator(f"#results > .card[data-state={state}]").first


def test_a_click_on_a_sample_shows_its_labels_bars_and_times(page):
    page.click(".sample[data-label=cat]")
    done = card(page, "done")

    assert done.locator(".top-label").text_content() == "cat"
    assert done.locator(".top-probability").text_content().endswith("%")
    expect(done.locator(".predictions li")).to_have_count(5)
    expect(done.locator(".predictions .fill")).to_have_count(5)
    widths = [box["width"] for box in (fill.bounding_box() for fill in done.locator(".fill").all())]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0
    stages = done.locator(".stages div").evaluate_all("divs => divs.map(each => each.dataset.stage)")
    assert {"preprocess", "queue", "inference"} <= set(stages)
    assert all(text.endswith(" ms") for text in done.locator(".stages dd").all_text_contents())


def test_a_file_that_is_no_picture_shows_the_servers_sentence(page):
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture at all"})
    failed = card(page, "failed")

    assert "17 bytes" in failed.locator(".error-message").text_content()
    assert failed.locator(".error-code").text_content() == "INVALID_ARGUMENT / NOT_AN_IMAGE"


def test_the_page_names_the_model_that_is_ready(page):
    page.wait_for_function("() => document.getElementById('model').dataset.state === 'ready'")

    assert "version 1" in page.locator("#model-state").text_content()
    assert "cat" in page.locator("#knows").text_content()
