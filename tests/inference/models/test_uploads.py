"""Partial graphs on disk: gone on with, kept within bounds, never two writers."""

import os
import shutil
import subprocess
import time
from contextlib import ExitStack

import pytest

from services.common.errors import Conflict, NotReady, Overloaded
from services.common.manifest import Graph, digest_of
from services.inference.models.uploads import MAX_UPLOADS, RETENTION_SECONDS, Uploads

GRAPH = Graph(sha256=digest_of(b"graph"), size_bytes=5)
NOW = time.time()


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path)


def leave(uploads, tmp_path, model, age_seconds=0.0):
    """Leave a part of the graph as it was left then, and return its file."""
    with uploads.receiving(model, GRAPH, 0) as upload:
        upload.append(b"gra")
    (path,) = tmp_path.glob(f".upload-{model}-*")
    os.utime(path, (NOW - age_seconds, NOW - age_seconds))
    return path


def kept(uploads, *models):
    return [uploads.received_bytes(model, GRAPH.sha256) for model in models]


def test_what_arrived_is_kept_by_model(uploads, tmp_path):
    leave(uploads, tmp_path, "m")

    assert kept(Uploads(tmp_path), "m", "other") == [3, 0]


def test_finished_upload_is_gone_and_its_graph_stays(uploads, tmp_path):
    leave(uploads, tmp_path, "m")
    with uploads.receiving("m", GRAPH, 3) as upload:
        upload.append(b"ph")
        upload.complete()
        upload.copy_to(tmp_path / "graph")
        upload.finished = True

    assert kept(uploads, "m") == [0]
    assert (tmp_path / "graph").read_bytes() == b"graph"


def test_upload_that_another_has_is_not_written_to(uploads, tmp_path):
    with uploads.receiving("m", GRAPH, 0) as upload:
        upload.append(b"gra")
        with (
            pytest.raises(NotReady, match="is being uploaded by another call"),
            Uploads(tmp_path).receiving("m", GRAPH, 0),
        ):
            pass
        upload.append(b"ph")
        upload.complete()


def test_upload_that_nobody_goes_on_with_is_removed_in_the_end(uploads, tmp_path):
    leave(uploads, tmp_path, "old", RETENTION_SECONDS + 60)
    leave(uploads, tmp_path, "recent", RETENTION_SECONDS - 3600)
    Uploads(tmp_path).remove_abandoned()

    assert kept(uploads, "old", "recent") == [0, 3]


def test_no_more_than_so_many_uploads_are_kept(uploads, tmp_path):
    models = [f"m{number}" for number in range(MAX_UPLOADS + 2)]
    for number, model in enumerate(models):
        leave(uploads, tmp_path, model, 600 - number)
    Uploads(tmp_path).remove_abandoned()

    assert kept(uploads, *models) == [0, 0] + [3] * MAX_UPLOADS


def test_uploads_in_progress_take_no_places(uploads, tmp_path):
    models = [f"m{number}" for number in range(MAX_UPLOADS)]
    for number, model in enumerate(models):
        leave(uploads, tmp_path, model, 600 - number)
    with ExitStack() as stack:
        for number in range(MAX_UPLOADS):
            stack.enter_context(uploads.receiving(f"other{number}", GRAPH, 0)).append(b"gra")

        assert kept(uploads, *models) == [3] * MAX_UPLOADS
    Uploads(tmp_path).remove_abandoned()
    assert kept(uploads, *models) == [0] * MAX_UPLOADS


def leave_to_a_version(uploads, tmp_path):
    """Do what a process does that is killed when a version has the graph and the upload is still there too."""
    version, spare = tmp_path / "version", tmp_path / "spare"
    with uploads.receiving("m", GRAPH, 0) as upload:
        upload.append(b"graph")
        upload.complete()
        upload.copy_to(version)
        (path,) = tmp_path.glob(".upload-m-*")
        spare.hardlink_to(path)
        upload.finished = True
    spare.rename(path)
    return version


@pytest.mark.parametrize("size", [5, 50], ids=["the same", "of another size, as it says"])
def test_graph_that_a_version_has_is_not_written_to(uploads, tmp_path, size):
    version = leave_to_a_version(uploads, tmp_path)
    stated = Graph(sha256=GRAPH.sha256, size_bytes=size)

    with pytest.raises(Conflict, match="but 0 bytes of the graph are kept"), uploads.receiving("m", stated, 5):
        pass
    with uploads.receiving("m", stated, 0) as upload:
        upload.append(b"gra")

    assert version.read_bytes() == b"graph"
    assert kept(uploads, "m") == [3]


def test_graph_that_a_version_has_is_no_upload(uploads, tmp_path):
    leave_to_a_version(uploads, tmp_path)

    assert kept(uploads, "m") == [0]


def test_upload_in_progress_is_not_removed(uploads, tmp_path):
    path = leave(uploads, tmp_path, "m", RETENTION_SECONDS + 60)
    with uploads.receiving("m", GRAPH, 3):
        Uploads(tmp_path).remove_abandoned()

        assert path.exists()


def test_upload_is_written_to_no_file_that_a_link_leads_to(uploads, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".upload-m-{GRAPH.sha256.removeprefix('sha256:')}").symlink_to(victim)

    with pytest.raises(Conflict, match="cannot be written"), uploads.receiving("m", GRAPH, 0):
        pass
    assert victim.read_bytes() == b"precious"


def test_upload_whose_file_is_exchanged_meanwhile_gives_what_was_sent(uploads, tmp_path):
    with uploads.receiving("m", GRAPH, 0) as upload:
        upload.append(b"graph")
        (path,) = tmp_path.glob(".upload-m-*")
        path.unlink()
        path.write_bytes(b"other")
        upload.complete()
        upload.copy_to(tmp_path / "graph")

    assert (tmp_path / "graph").read_bytes() == b"graph"


def test_what_is_no_upload_disturbs_none(uploads, tmp_path):
    for number in range(MAX_UPLOADS + 1):
        folder = tmp_path / f".upload-{number}"
        folder.mkdir()
        os.utime(folder, (0, 0))

    leave(uploads, tmp_path, "m")

    assert kept(uploads, "m") == [3]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can make a disk that is full")
def test_a_full_disk_is_told_and_not_kept_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        graph = Graph(sha256=GRAPH.sha256, size_bytes=10**6)
        with (
            pytest.raises(Overloaded, match="there is no room on the disk for the upload of graph"),
            Uploads(disk).receiving("m", graph, 0) as upload,
        ):
            upload.append(bytes(10**6))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
