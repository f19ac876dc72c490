"""The page in a real browser, against a running suite."""

import base64
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import poll

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# A test cannot hold the desktop's mouse, so the event that the browser would make of it is made here.
BRING = """(target, [kind, event, carrier, content]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    transfer.items.add(new File([bytes], "from-outside.png", { type: "image/png" }));
    return target.dispatchEvent(new window[kind](event, { bubbles: true, cancelable: true, [carrier]: transfer }));
}"""
DRAG, PASTE = ("#drop", "DragEvent", "dataTransfer"), ("body", "ClipboardEvent", "clipboardData")
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

    def hear(message):
        # A model that is served since a moment ago has no loop yet.
        if message.type == "error" and not message.location["url"].endswith("/loop"):
            complaints.append(message.text)

    page.on("console", hear)
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


def bring(page, event, way):
    """Bring the cat's file to the page; return whether the browser is left to do with it what it likes."""
    target, kind, carrier = way
    return page.locator(target).evaluate(BRING, [kind, event, carrier, base64.b64encode(cat()).decode()])


@pytest.mark.parametrize(("event", "way"), [("drop", DRAG), ("paste", PASTE)], ids=["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_shows_its_labels(page, event, way):
    bring(page, event, way)
    done = card(page, "done")

    assert done.locator(".file-name").text_content() == "from-outside.png"
    assert done.locator(".top-label").text_content() == "cat"
    expect(done.locator(".predictions li")).to_have_count(5)
    expect(page.locator("#results > .card")).to_have_count(1)


def test_a_file_that_is_dragged_over_the_page_is_awaited_and_not_opened_by_the_browser(page):
    left_to_the_browser = bring(page, "dragover", DRAG)
    expect(page.locator("body.dragging")).to_have_count(1)
    left_to_the_browser |= bring(page, "drop", DRAG)

    expect(page.locator("body.dragging")).to_have_count(0)
    assert not left_to_the_browser


def test_a_clipboard_without_a_file_is_named_and_makes_no_card(page):
    page.evaluate("document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")

    expect(page.locator("#hint")).to_have_text("There is no picture on the clipboard.")
    expect(page.locator("#results > .card")).to_have_count(0)


def test_a_probability_that_is_no_number_has_no_bar(page):
    """As of a broken model: everything is the server's answer, but for one number."""

    def without_number(route):
        response = route.fetch()
        answer = response.json()
        answer["predictions"][0]["probability"] = None
        route.fulfill(response=response, json=answer)

    page.route("**/predict*", without_number)
    page.click(".sample[data-label=cat]")
    done = card(page, "done")

    assert done.locator(".top-probability").text_content() == "n/a"
    assert done.locator(".probability").first.text_content() == "n/a"
    expect(done.locator(".fill")).to_have_count(4)


def test_a_file_that_is_no_picture_shows_the_servers_sentence(page):
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture at all"})
    failed = card(page, "failed")

    assert "17 bytes" in failed.locator(".error-message").text_content()
    assert failed.locator(".error-code").text_content() == "INVALID_ARGUMENT / NOT_AN_IMAGE"


def test_the_page_names_the_model_that_is_ready(page):
    page.wait_for_function("() => document.getElementById('model').dataset.state === 'ready'")

    assert "version 1" in page.locator("#model-state").text_content()
    assert "cat" in page.locator("#knows").text_content()


def test_the_page_shows_the_loop_that_the_trainer_drives(page, suites):
    suite = suites["services"]
    with suite.client() as client:
        poll(
            lambda: client.get("/v1/models/cifar10/loop").json().get("enabled", False),
            suite.process,
            suite.folder,
        )
    page.reload()

    expect(page.locator("#loop .stage")).to_have_text("Nothing is being changed.", timeout=30_000)
    expect(page.locator("#loop .next")).to_contain_text("The next attempt waits for")
