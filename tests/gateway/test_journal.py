"""The journal of captured predictions: what a gateway leaves that is killed, and what the next one finds."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import FILE_BYTES, Journal

WRITER = """
import os, signal, sys
from pathlib import Path
from gateway.journal import Journal

journal = Journal(Path(sys.argv[1]))
for sequence in range(1, 6):
    journal.append(sequence, b"record %d" % sequence)
journal.settle(2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def records(folder: Path) -> list[bytes]:
    """Return what is left in *folder*, and leave it there."""
    left = Journal(folder).left()
    for each in left:
        os.close(each.descriptor)
    return [record for each in left for record in each.records]


def test_what_a_killed_gateway_has_not_settled_is_there_for_the_next_one(tmp_path):
    killed = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL

    journal = Journal(tmp_path)
    (left,) = journal.left()
    assert left.records == [b"record 3", b"record 4", b"record 5"]

    journal.adopt(left, 1)
    journal.append(4, b"its own")
    journal.settle(1)
    journal.close()
    assert sorted(records(tmp_path)) == [b"its own", b"record 4", b"record 5"]


def test_what_another_gateway_works_with_is_left_alone(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.append(1, b"of the first")
    second.append(1, b"of the second")

    assert Journal(tmp_path).left() == []
    first.close()
    assert records(tmp_path) == [b"of the first"]


def test_nothing_stays_of_what_is_settled(tmp_path):
    journal = Journal(tmp_path)
    for sequence in range(1, 5):
        journal.append(sequence, bytes(FILE_BYTES // 2))
    assert len(list(tmp_path.iterdir())) == 2
    journal.settle(4)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
    journal.append(5, b"again")
    journal.close()

    assert records(tmp_path) == [b"again"]


@given(cut=st.integers(0, 200), byte=st.integers(0, 200))
def test_a_file_that_is_damaged_gives_the_records_before_the_damage(tmp_path_factory, cut, byte):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    whole = [bytes([sequence]) * 30 for sequence in range(1, 5)]
    for sequence, data in enumerate(whole, 1):
        journal.append(sequence, data)
    journal.close()
    (path,) = folder.iterdir()
    written = path.read_bytes()
    data = bytearray(written[: len(written) - cut])
    if byte < len(data):
        data[byte] ^= 1
    path.write_bytes(data)

    found = records(folder)
    damaged_place = byte < 8 or len(data) < 8
    assert damaged_place or found == whole[: len(found)]
    assert all(each in whole for each in found)


@pytest.mark.parametrize("data", [bytes(4096), bytes(4), b"", (2**40).to_bytes(8) + b"rest"])
def test_a_file_without_a_record_gives_none_and_goes(tmp_path, data):
    (tmp_path / "x.captured").write_bytes(data)
    journal = Journal(tmp_path)
    (left,) = journal.left()
    assert left.records == []

    journal.adopt(left, 1)
    journal.settle(0)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_does_not_hold_back_the_others(tmp_path):
    (tmp_path / "a.captured").mkdir()
    journal = Journal(tmp_path)
    journal.append(1, b"record")
    journal.close()

    assert records(tmp_path) == [b"record"]


def test_a_record_that_the_disk_does_not_take_leaves_the_ones_before_it_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.append(1, b"fits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError, match=r"disk is full|too large") as failure:
            journal.append(2, bytes(1000))
        assert failure.value.errno in (None, errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    journal.append(3, b"fits too")
    journal.close()

    assert records(tmp_path) == [b"fits", b"fits too"]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_record_alone(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    journal = Journal(tmp_path / "file" / "captured")

    assert journal.left() == []
    with pytest.raises(OSError, match="Not a directory"):
        journal.append(1, b"record")
