"""Every text with which a caller or an operator is refused tells what to do."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import gateway
import services
from tests.error_texts import raised_in

FOLDERS = [Path(package.__path__[0]) for package in (gateway, services)]
ADVICE = """
    add allow ask begin change compress connect copy correct create describe export give install leave load look
    lower make mark mend move name nest pass preprocess publish put raise register remove retry save see send set
    start train try unload unregister upload use wait
"""
"""How sentences begin that say what to do."""
_TELLS = re.compile(rf"(?:[;:,] (?:or |and )?|\b(?:or|and) )(?:{'|'.join(ADVICE.split())})\b")
OTHERS = (
    "serving.py:* failed to load {…}, version {…}: {…}",
    "traffic.py:* model {…} has no version that is ready; {…}",
    "traffic.py:* version {…} of model {…} is {…}: {…}",
    "graph_check.py:* {…} cannot be loaded: {…}",
)
"""Texts that end with another one, which says what to do."""


def test_every_error_text_says_what_to_do():
    modules = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py")) if "trainer" not in path.parts]
    texts = [each for module in modules for each in raised_in(module)]
    silent = [each for each in texts if not _TELLS.search(each.text)]
    own = [str(each) for each in silent if not any(fnmatchcase(str(each), pattern) for pattern in OTHERS)]

    assert len(texts) > 150
    assert own == [], "\n".join(["", *own])
