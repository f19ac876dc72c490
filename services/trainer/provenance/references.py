"""A search for what must be nowhere any more: through all tables, and all files that the trainer keeps of users."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, select

from services.trainer.feedback.pseudonyms import fingerprint, read_pseudonyms
from services.trainer.storage.database import Database

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DIGEST_CHARACTERS, _HEXADECIMAL = 64, b"0123456789abcdef"
_TEXTS = frozenset({".json", ".jsonl", ".txt", ".csv", ".html", ".md", ".toml", ".log"})
"""Files that are read; of others, such as arrays and weights, only the names can tell."""
_READ_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 1000
_NAMES = frozenset({"contributor", "name"})
"""Columns that hold the name of a contributor."""


@dataclass(frozen=True)
class Search:
    """What was looked through, and what was found."""

    tables: int
    rows: int
    files: int
    found: dict[str, int]
    """How often, by where: `observations.pixel_digest`, or the path of a file."""


def find_references(
    database: Database, folders: Sequence[Path], fingerprints: Collection[str], subject: str = ""
) -> Search:
    """Look for digests known by their fingerprints and a name known by its pseudonym, in all tables and *folders*.

    Args:
        database: All of its tables are read, whoever they belong to.
        folders: With all that is below them; names of files, and what texts say.
        fingerprints: Of digests, 64 hexadecimal digits each.
        subject: Pseudonym of a contributor; empty for none.

    Raises:
        NotReady: The database does not answer.
    """
    wanted = frozenset(fingerprints)
    found: Counter[str] = Counter()
    tables, rows = _search_tables(database, wanted, subject, found)
    files = 0
    for path in _files(folders):
        files += 1
        named = _count(path.name.encode(), wanted)
        said = sum(_count(part, wanted) for part in _parts(path)) if path.suffix in _TEXTS else 0
        if named or said:
            found[str(path)] += named + said
    return Search(tables, rows, files, dict(sorted(found.items())))


def _search_tables(database: Database, wanted: frozenset[str], subject: str, found: Counter[str]) -> tuple[int, int]:
    metadata, rows = MetaData(), 0
    with database.read() as session:
        metadata.reflect(session.connection())
        named = _named_as(subject, read_pseudonyms(session)) if subject else _nothing
        for table in metadata.sorted_tables:
            columns = list(table.columns)
            looks: list[tuple[str, Callable[[Any], int]]] = [
                (column.name, named if column.name in _NAMES else _nothing) for column in columns
            ]
            for row in session.execute(select(table).execution_options(yield_per=_ROWS_AT_ONCE)):
                rows += 1
                for (name, look), value in zip(looks, row, strict=True):
                    if times := _count(_text(value), wanted) + look(value):
                        found[f"{table.name}.{name}"] += times
    return len(metadata.tables), rows


def _named_as(subject: str, pseudonym: Callable[[str], str]) -> Callable[[Any], int]:
    return lambda value: int(isinstance(value, str) and pseudonym(value) == subject)


def _nothing(value: Any) -> int:
    return 0


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value).encode() if isinstance(value, dict | list) else b""


def _count(text: bytes, wanted: frozenset[str]) -> int:
    return sum(fingerprint(each.decode()) in wanted for each in _DIGEST.findall(text)) if wanted else 0


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _parts(path: Path) -> Iterator[bytes]:
    """Yield a file in parts, none of which ends within a digest; nothing where it is gone meanwhile."""
    try:
        with path.open("rb") as file:
            left = b""
            while part := file.read(_READ_AT_ONCE):
                whole = left + part
                last = whole[-_DIGEST_CHARACTERS:]
                end = len(whole) - len(last) + len(last.rstrip(_HEXADECIMAL))
                yield whole[:end]
                left = whole[end:]
            yield left
    except FileNotFoundError:
        return
