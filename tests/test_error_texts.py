"""Every text with which a caller or an operator is refused tells what to do."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import gateway
import services
from tests.error_texts import ErrorText, not_walked, raised_in, walked_by

FOLDERS = [Path(package.__path__[0]) for package in (gateway, services)]
ADVICE = """
    add allow ask begin change compress connect copy correct create describe export give install leave load look
    lower make mark mend move name nest pass preprocess publish put raise register remove retry save see send set
    start train try unload unregister upload use wait
"""
"""How sentences begin that say what to do."""
_TELLS = re.compile(rf"(?:[;:,] (?:or |and )?|\b(?:or|and) )(?:{'|'.join(ADVICE.split())})\b")
OTHERS = (
    "serving.py:* failed to load {…}, {…}",
    "traffic.py:* model {…} has no version that is ready; {…}",
    "traffic.py:* version {…} of model {…} is {…}: {…}",
    "refusals.py:* the image is {…}, and {…} is not supported; {…}",
)
"""Texts that end with another one, which says what to do."""


MODULE = """
from services.common import errors
from services.common.errors import InvalidInput, NotFound

LATE = "late; try again"

def lookup(name, limit):
    if limit:
        return errors.NotFound("no such thing; name another")
    of = f"thing {name!r}, "
    raise refusal(name, of + f"over {limit}; use less")

def refusal(name, text):
    return InvalidInput(f"{name} is refused: {text}")

def flag(key, value, wanted):
    raise InvalidInput(f"{key!r} is {value}; give {wanted}")

def flags(value):
    wanted = "a number"
    flag("size", value, wanted)
    flag("name", value, "text")

class Queue:
    def start(self, loop, pending):
        loop.call_later(1, self.expire, pending, LATE)
        self.expire(pending, "gone; send it again")

    def expire(self, pending, words):
        pending.set_exception(NotFound(words))
        raise NotFound(pending.message)
"""


def test_errors_are_found_however_they_get_their_words(tmp_path):
    module = tmp_path / "m.py"
    module.write_text(MODULE)

    assert sorted(each.text for each in raised_in(module)) == [
        "'name' is {…}; give text",
        "'size' is {…}; give a number",
        "gone; send it again",
        "late; try again",
        "no such thing; name another",
        "{…} is refused: thing {…}, over {…}; use less",
    ]


def test_an_answer_stands_for_one_place_however_many_it_fits():
    places = [ErrorText("m.py:1", "{…} is {…}; send it"), ErrorText("m.py:2", "{…} is {…}; send it")]
    broad = ErrorText("m.py:3", "{…}: {…}")

    assert len(walked_by(["a is 1; send it"], places)) == 1
    assert walked_by(["a is 1; send it", "b is 2; send it"], places) == set(places)
    assert walked_by(["m: a is 1; send it", "b is 2; send it", "m: other"], [broad, *places]) == {broad, *places}


def test_an_error_that_is_said_to_be_elsewhere_must_be_there(tmp_path):
    module = tmp_path / "m.py"
    module.write_text(MODULE)

    left = not_walked([module], ["late; try again"], {"give": "there", "no such thing": "there", "never": "there"})
    assert left == [
        "m.py:11 {…} is refused: thing {…}, over {…}; use less",
        "m.py:27 gone; send it again",
        "elsewhere: never",
    ]


def test_every_error_text_says_what_to_do():
    modules = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py")) if "trainer" not in path.parts]
    texts = [each for module in modules for each in raised_in(module)]
    silent = [each for each in texts if not _TELLS.search(each.text)]
    own = [str(each) for each in silent if not any(fnmatchcase(str(each), pattern) for pattern in OTHERS)]

    assert len(texts) > 150
    assert own == [], "\n".join(["", *own])
