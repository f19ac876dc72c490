"""What stands for names and contents where they must not be read: in the log, and in what is kept of deletions."""

import hashlib
from collections.abc import Callable
from functools import partial

from sqlalchemy.orm import Session

from services.trainer.feedback.tables import PseudonymKeyRow

_BYTES = 32


def read_pseudonyms(session: Session) -> Callable[[str], str]:
    """Return a function that gives the pseudonym of a name: 64 hexadecimal digits, the same ones each time.

    It is a keyed digest (BLAKE2b), since names are few enough to be tried one after the other. Whoever reads events or
    reports alone, or a copy of them, learns nothing. Who has the database can tell whether one is of a given name, and
    must: what comes late of somebody who was forgotten is refused, and a report belongs to whoever asked for it. The
    key lives as long as the database; once it is gone nobody can tell any more.
    """
    key = bytes.fromhex(session.get_one(PseudonymKeyRow, 1).key)
    return partial(_pseudonym, key)


def fingerprint(text: str) -> str:
    """Return SHA-256 of *text*, 64 hexadecimal digits: enough to know it again, not to read it.

    For what nobody can guess, as the digest of a picture; not for names.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def _pseudonym(key: bytes, name: str) -> str:
    # Of the SHA-256, which is what the database has kept of a name before it had a key, so that those became these.
    digest = hashlib.sha256(name.encode()).hexdigest()
    return hashlib.blake2b(digest.encode(), digest_size=_BYTES, key=key).hexdigest()
