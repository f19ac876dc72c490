"""Keys, feedback, reviews and the loop as a person types them, against a running suite."""

import json

import pytest

from aimass.client import PredictionError
from tests.end_to_end.pictures import plain


async def test_a_word_goes_from_a_user_over_a_reviewer_into_the_samples(typed, suite, tmp_path):
    """In one test: each step needs the one before."""

    async def ask(*arguments, key=""):
        return await typed(*arguments, "--address", suite.address, *(("--key", key) if key else ()))

    file = tmp_path / "red.png"
    file.write_bytes(plain((200, 7, 9)))
    secrets = {name: (await ask("keys", "make", name)).strip() for name in ("ann", "rex")}
    await ask("keys", "trust", "rex")
    prediction = json.loads(await ask("predict", "--json", file))
    sent = ("feedback", "send", prediction["prediction_id"], "--label", "truck", "--image", file, "--model", "cifar10")
    told = await ask(*sent, key=secrets["ann"])
    exported = json.loads((await ask("feedback", "export", "cifar10")).splitlines()[-1])
    decision = ("review", "decide", exported["observation"], "--label", "truck")
    with pytest.raises(PredictionError, match="anonymous is not trusted to decide"):
        await ask(*decision)
    decided = await ask(*decision, key=secrets["rex"])

    assert told.startswith("pending (")
    assert [(each["contributor"], each["label"]) for each in exported["votes"]] == [("ann", "truck")]
    assert decided.startswith(f"picture {exported['observation']} is ")
    assert "as truck" in decided
    assert "wait for a reviewer" in await ask("review")


def test_a_loop_stands_and_has_events(aimass):
    shown, events = aimass("loop"), aimass("loop", "events", "cifar10")

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split("\n")[0].split() == ["cifar10", "its", "loop", "is", "on"]
    assert events.returncode == 0, events.stderr


def test_an_unknown_model_is_told_in_one_sentence(aimass):
    shown = aimass("loop", "dogs")

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: model 'dogs' is unknown")
    assert len(shown.stderr.splitlines()) == 1
