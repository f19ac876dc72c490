"""Files of runs that callers may have."""

from collections.abc import Iterator
from pathlib import Path

from services.common.manifest import GRAPH_FILE, MANIFEST_FILE
from services.trainer.runs.folder import (
    CARD_DOCUMENT_FILE,
    CARD_FILE,
    CHOICE_FILE,
    CONFUSION_FILE,
    EVALUATION_FILE,
    LOG_FILE,
    REPORT_DOCUMENT_FILE,
    REPORT_FILE,
)

ARTIFACTS = (
    GRAPH_FILE,
    MANIFEST_FILE,
    EVALUATION_FILE,
    CONFUSION_FILE,
    CARD_FILE,
    CARD_DOCUMENT_FILE,
    CHOICE_FILE,
    REPORT_FILE,
    REPORT_DOCUMENT_FILE,
    LOG_FILE,
)
"""Files of a run that can be had over the contract."""
CHUNK_BYTES = 1024 * 1024


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
