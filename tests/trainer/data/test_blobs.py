import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import InvalidInput, Overloaded
from services.trainer.data.blobs import Blobs


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_blob_is_named_by_its_content_and_read_back(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")

    digest = blobs.put(b"content")

    assert digest == hashlib.sha256(b"content").hexdigest()
    assert blobs.path(digest).read_bytes() == b"content"
    assert files(blobs.folder) == [blobs.folder / digest[:2] / digest[2:4] / digest]


def test_a_blob_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    path = blobs.path(blobs.put(b"content"))
    before = path.stat()

    blobs.put(b"content")

    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_many_threads_may_put_the_same_blob(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(lambda number: blobs.put(bytes([number % 3]) * 1000), range(48)))

    assert len(set(digests)) == 3
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_malformed_digest_is_refused(digest: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not valid; give 64 hexadecimal digits"):
        Blobs(tmp_path).path(digest)


def test_a_disk_that_takes_nothing_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"a file")

    with pytest.raises(Overloaded, match=r"a sample of 7 bytes cannot be stored in .*; make room there"):
        Blobs(tmp_path / "blobs").put(b"content")
