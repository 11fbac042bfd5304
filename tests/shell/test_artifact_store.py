"""The blob store on a real disk."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shared.artifact_part import SPARE_BYTES
from shared.artifact_store import ArtifactStore
from shared.errors import ArtifactError, StorageFullError


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache", 1000)


def put_old(store: ArtifactStore, data: bytes, age_s: int) -> str:
    digest = store.put(data)
    path = store.path(digest)
    assert path is not None
    status = path.stat()
    os.utime(path, (status.st_atime - age_s, status.st_mtime))
    return digest


def test_what_is_put_is_found_by_its_digest(store: ArtifactStore) -> None:
    digest = store.put(b"abc")
    assert digest == digest_of(b"abc")
    assert store.has(digest)
    path = store.path(digest)
    assert path is not None
    assert path == store.directory / digest[:2] / digest
    assert path.read_bytes() == b"abc"
    assert store.read(digest, 1, 10) == (3, b"bc")
    assert store.size_bytes() == 3


def test_what_is_not_here(store: ArtifactStore) -> None:
    digest = digest_of(b"nothing")
    assert not store.has(digest)
    assert store.path(digest) is None
    assert store.pin(digest) is None
    with pytest.raises(ArtifactError, match=digest):
        store.read(digest, 0, 1)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, "A" * 64, ""])
def test_a_name_that_is_no_digest_never_reaches_the_disk(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactError, match="not the name of a blob"):
        store.path(name)
    with pytest.raises(ArtifactError, match="not the name of a blob"):
        store.open_part(name, 1)


def test_damaged_blob_is_removed_at_its_first_use_in_a_process(tmp_path: Path) -> None:
    digest = ArtifactStore(tmp_path, 1000).put(b"good bytes")
    (tmp_path / digest[:2] / digest).write_bytes(b"bad bytes!")
    later = ArtifactStore(tmp_path, 1000)
    assert later.has(digest)
    assert later.path(digest) is None
    assert not later.has(digest)
    later.put(b"good bytes")
    assert later.path(digest) is not None


def test_a_blob_that_somebody_writes_to_is_not_given_away(store: ArtifactStore) -> None:
    """Same address, same size, other bytes: noticed at the next look, by whoever it is."""
    digest = store.put(b"good bytes")
    assert store.read(digest, 0, 4) == (10, b"good")
    path = store.path(digest)
    assert path is not None
    path.write_bytes(b"bad bytes!")
    with pytest.raises(ArtifactError, match=digest):
        store.read(digest, 0, 4)
    assert store.pin(digest) is None
    assert not store.has(digest)


def test_what_is_on_its_way_in_counts_whole(store: ArtifactStore) -> None:
    parts = [store.open_part(digest_of(bytes([n])), 400) for n in range(2)]
    with pytest.raises(StorageFullError, match="full of blobs in use") as refused:
        store.open_part(digest_of(b"c"), 400)
    assert not refused.value.on_disk
    with pytest.raises(StorageFullError):
        store.put(b"d" * 201)
    store.put(b"d" * 200)
    parts[0].discard()
    store.open_part(digest_of(b"c"), 400).discard()
    parts[1].discard()


def test_what_is_expected_has_to_fit_together(store: ArtifactStore) -> None:
    here = put_old(store, b"a" * 300, 300)
    unused = put_old(store, b"b" * 300, 200)
    begun = store.open_part(digest_of(b"c"), 400)
    begun.write(b"c" * 100)
    begun.keep()
    with pytest.raises(StorageFullError, match="larger than the whole cache"):
        store.expect({here: 300, digest_of(b"c"): 400, digest_of(b"d"): 900})
    store.expect({here: 300, digest_of(b"c"): 400, digest_of(b"d"): 300})
    assert store.has(here), "though it was used longest ago, it is needed now"
    assert not store.has(unused)
    assert begun.path.exists()


def test_what_transfers_left_behind_goes_before_new_ones_fail(store: ArtifactStore) -> None:
    behind = store.open_part(digest_of(b"a"), 700)
    behind.write(b"a" * 600)
    behind.keep()
    store.put(b"b" * 300)  # beside it
    store.put(b"c" * 500)  # the blob that nobody uses goes first, and that is enough
    assert store.size_bytes() == 500 or not behind.path.exists()
    store.put(b"d" * 900)
    assert not behind.path.exists()


def test_least_recently_used_goes_first(store: ArtifactStore) -> None:
    old = put_old(store, b"a" * 400, 200)
    older = put_old(store, b"b" * 400, 300)
    store.put(b"c" * 400)
    assert store.has(old)
    assert not store.has(older)


def test_use_makes_recent(store: ArtifactStore) -> None:
    first = put_old(store, b"a" * 400, 300)
    second = put_old(store, b"b" * 400, 200)
    assert store.path(first) is not None
    store.put(b"c" * 400)
    assert store.has(first)
    assert not store.has(second)


def test_pinned_blob_stays_and_pins_are_counted(store: ArtifactStore) -> None:
    pinned = put_old(store, b"a" * 600, 300)
    assert store.pin(pinned) is not None
    assert store.pin(pinned) is not None
    store.unpin(pinned)
    with pytest.raises(ArtifactError, match="full of blobs in use") as refused:
        store.put(b"b" * 600)
    assert refused.value.got == "400 bytes"
    store.unpin(pinned)
    store.put(b"b" * 600)
    assert not store.has(pinned)


def test_larger_than_the_whole_cache(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="larger than the whole cache"):
        store.put(b"x" * 1001)
    with pytest.raises(ArtifactError, match="larger than the whole cache"):
        store.open_part(digest_of(b"x"), 1001)


def test_part_is_written_verified_and_committed(store: ArtifactStore) -> None:
    data = b"0123456789" * 10
    part = store.open_part(digest_of(data), len(data))
    part.write(data[:50])
    assert not store.has(part.digest)
    part.write(memoryview(data)[50:])
    assert part.complete
    assert part.commit().read_bytes() == data
    assert store.path(part.digest) is not None


def test_part_resumes_where_it_stopped(store: ArtifactStore) -> None:
    data = b"0123456789" * 10
    first = store.open_part(digest_of(data), len(data))
    first.write(data[:50])
    first.keep()
    second = store.open_part(digest_of(data), len(data))
    assert second.offset == 50
    second.truncate(30)
    assert second.offset == 30
    second.write(data[30:])
    assert second.commit().read_bytes() == data


def test_part_with_other_bytes_is_not_committed(store: ArtifactStore) -> None:
    part = store.open_part(digest_of(b"right"), 5)
    part.write(b"wrong")
    assert not part.complete
    with pytest.raises(ArtifactError, match="damaged"):
        part.commit()
    part.restart()
    part.write(b"right")
    part.commit()


def test_part_longer_than_announced(store: ArtifactStore) -> None:
    part = store.open_part(digest_of(b"right"), 5)
    with pytest.raises(ArtifactError, match="longer"):
        part.write(b"right and more")
    part.discard()


def test_two_fetches_of_one_blob_do_not_mix(store: ArtifactStore) -> None:
    data = b"0123456789"
    first, second = (store.open_part(digest_of(data), 10) for _ in range(2))
    first.write(data[:5])
    second.write(data)
    second.commit()
    first.write(data[5:])
    first.commit()
    path = store.path(digest_of(data))
    assert path is not None
    assert path.read_bytes() == data
    assert list((store.directory / "part").iterdir()) == []


def test_full_disk_says_so_and_leaves_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    part = store.open_part(digest_of(b"x"), 1)
    part.write(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(ArtifactError, match="disk is full") as refused:
            part.commit()
        assert refused.value.expected == f"{1 + SPARE_BYTES} bytes free"
        with pytest.raises(ArtifactError, match="disk is full"):
            store.put(b"y")
    assert list((store.directory / "part").iterdir()) == []


def test_really_full_disk(tmp_path: Path) -> None:
    """`/dev/full` refuses every write as a full disk does."""
    store = ArtifactStore(tmp_path, 10**9)
    data = b"z" * 10**6
    part = store.open_part(digest_of(data), len(data))
    part._file.close()
    part._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(ArtifactError, match="disk is full"):
        part.write(data)
    assert list((tmp_path / "part").iterdir()) == []


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be used"):
        ArtifactStore(tmp_path / "file" / "cache", 1000)


def test_another_process_neither_evicts_what_is_pinned_nor_mixes_parts(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, 1000)
    pinned = put_old(store, b"a" * 600, 300)
    free = put_old(store, b"b" * 300, 200)
    assert store.pin(pinned) is not None
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from shared.artifact_store import ArtifactStore
        store = ArtifactStore(Path({str(tmp_path)!r}), 1000)
        print(store.put(b"c" * 300))
        """
    )
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert store.path(made) is not None
    assert store.has(pinned)
    assert not store.has(free)
