import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import aimass
from services.common.errors import InvalidInput
from services.common.manifest import Manifest
from services.trainer.data.samples import Samples
from services.trainer.evaluation.card import Headline, ModelCard, NetworkSize, make_card
from services.trainer.evaluation.card_page import compare, render_card
from services.trainer.evaluation.figures import Evaluation, evaluate_predictions
from services.trainer.evaluation.latency import BatchLatency, Latency
from services.trainer.evaluation.robustness import AttackResult, Robustness

LATENCY = Latency(
    processor="Some CPU",
    cores=2,
    threads=2,
    software={"numpy": "2.0"},
    warm_up=1,
    batches=(
        BatchLatency(
            batch_size=1,
            runs=30,
            median_milliseconds=1.5,
            p95_milliseconds=2.5,
            images_per_second=600,
            cpu_seconds_per_image=0.002,
        ),
    ),
)
ROBUSTNESS = Robustness(
    samples=100,
    seed=0,
    clean_accuracy=0.9,
    accuracy={"jpeg": (0.8, 0.7, 0.6, 0.5, 0.4)},
    mean_accuracy=0.6,
    attacks=(
        AttackResult(
            attack="PGD", epsilon=8, steps=20, samples=100, accuracy=0.03, accuracy_low=0.01, accuracy_high=0.08
        ),
    ),
)
VOID = {"meta", "link", "img", "source", "br", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text between them, and whether every tag was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def full(evaluation: Evaluation) -> ModelCard:
    path = Path(aimass.__file__).parent / "starter/cifar10/1/model.json"
    manifest = Manifest.from_json(path.read_text(), path.name)
    parent = make_card(evaluation, title="elder", version=1, latency=LATENCY)
    return make_card(
        evaluation,
        title="younger",
        version=2,
        summary="Names things.",
        manifest=manifest,
        network_size=NetworkSize(parameters=1_051_000, multiply_adds=42_000_000),
        robustness=ROBUSTNESS,
        latency=LATENCY,
        history={1: {"train_loss": 2.0}, 2: {"train_loss": 1.0}},
        parent=parent,
    )


@pytest.fixture(scope="module")
def html(full: ModelCard, unseen: Samples) -> str:
    return render_card(full, unseen.images)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_is_well_formed(page: Page) -> None:
    assert page.open == []


@pytest.mark.parametrize(
    "words",
    [
        "younger, version 2",
        "Names things.",
        "1,051,000",
        "42\N{NO-BREAK SPACE}M",
        "4,207,924 bytes",
        "elder, version 1",
        "Macro average",
        "Top-5 accuracy",
        "Brier score",
        "8 of 255",
        "Some CPU, 2 threads on 2 cores",
        "label_smoothing",
        "train 48,000",
        "do not rely on it against people",
    ],
)
def test_page_tells(words: str, page: Page) -> None:
    assert words in page.text


def test_page_needs_nothing_from_outside(page: Page, html: str) -> None:
    sources = [attributes.get(name) for _, attributes in page.tags for name in ("src", "srcset", "href", "action")]

    assert all(source.startswith("data:image/") for source in sources if source)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_page_has_no_scripts_and_no_styles_of_single_elements(page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name == "style" or name.startswith("on")]


def test_page_has_every_picture_for_light_and_for_dark(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("picture") == 4
    dark = [attributes for tag, attributes in page.tags if tag == "source"]
    assert {attributes["media"] for attributes in dark} == {"(prefers-color-scheme: dark)"}
    assert len(dark) == 4


def test_page_shows_the_images_of_mistakes(page: Page, full: ModelCard) -> None:
    shown = [attributes for tag, attributes in page.tags if tag == "img" and "called" in (attributes["alt"] or "")]

    assert len(shown) == sum(len(pair.examples) for pair in full.evaluation.confused)


def test_page_without_images_counts_the_mistakes(full: ModelCard) -> None:
    text = Page(render_card(full)).text

    pair = full.evaluation.confused[0]
    assert f"{pair.count} times" in text


def test_page_of_a_bare_evaluation_leaves_out_what_is_not_known(evaluation: Evaluation) -> None:
    page = Page(render_card(make_card(evaluation)))

    assert page.open == []
    for title in ("Beside its parent", "How fast it is", "How it was trained", "On spoilt", "Network"):
        assert title not in page.text


def test_page_of_a_perfect_model_has_no_mistakes() -> None:
    evaluation = evaluate_predictions(np.eye(3), np.arange(3), ("a", "b", "c"))

    assert "Its most frequent mistakes" not in render_card(make_card(evaluation))


def test_page_escapes_what_came_from_outside(evaluation: Evaluation) -> None:
    evil = "</title><script>alert(1)</script>\"'"
    names = (evil, *evaluation.labels[1:])
    hostile = evaluate_predictions(np.eye(10)[:, ::-1], np.arange(10), names)

    html = render_card(make_card(hostile, title=evil, summary=evil, intended_use=evil, limits=[evil]))

    assert "<script" not in html
    assert evil in Page(html).text


def test_card_of_other_images_is_rejected(full: ModelCard, unseen: Samples) -> None:
    with pytest.raises(InvalidInput, match="give those evaluated"):
        render_card(full, unseen.images[:1])


def headline(accuracy: float, median: float, size: int, multiply_adds: int) -> Headline:
    (batch,) = LATENCY.batches
    latency = LATENCY.model_copy(update={"batches": (batch.model_copy(update={"median_milliseconds": median}),)})
    return Headline(
        title="any",
        samples=1000,
        accuracy=accuracy,
        accuracy_low=accuracy - 0.02,
        accuracy_high=accuracy + 0.02,
        calibration_error=0.01,
        size_bytes=size,
        network_size=NetworkSize(parameters=size // 4, multiply_adds=multiply_adds),
        latency=latency,
    )


def test_comparison_sets_every_figure_beside_the_parents() -> None:
    lines = compare(headline(0.90, 2.0, 1000, 500), headline(0.92, 5.0, 1000, 250))

    found = {line.name: re.sub("\N{NO-BREAK SPACE}", " ", line.difference) for line in lines}
    assert found == {
        "Accuracy": "\N{MINUS SIGN}2.00 points",
        "Calibration error": "±0.00 points",
        "File": "the same",
        "Parameters": "the same",
        "Multiply-adds": "2 times as much",
        "Latency, 1 image": "2.5 times less",
    }
    assert lines[0].own.replace("\N{NO-BREAK SPACE}", " ") == "90.0 % (88.0 % to 92.0 %)"


def test_comparison_leaves_out_what_one_of_them_lacks() -> None:
    bare = headline(0.9, 1, 1, 1).model_copy(update={"size_bytes": None, "network_size": None, "latency": None})

    assert [line.name for line in compare(headline(0.9, 1, 1, 1), bare)] == ["Accuracy", "Calibration error"]
