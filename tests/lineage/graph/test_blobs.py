"""Bytes under a name: there whole, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lineage.errors import StoreUnavailable
from lineage.graph.blobs import Blobs, FolderBlobs, MemoryBlobs
from tests.clocks import Clock


def at(now_s: float) -> Clock:
    clock = Clock()
    clock.now_s = now_s
    return clock


@pytest.fixture
def clock() -> Clock:
    return at(1_000.0)


@pytest.fixture(params=["memory", "folder"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Blobs:
    return MemoryBlobs(clock) if request.param == "memory" else FolderBlobs(tmp_path / "new" / "store", clock)


def test_what_was_written_is_read_part_after_part(blobs: Blobs) -> None:
    blobs.write({"a/one": (b"begin ", memoryview(b"end")), "b/empty": ()})
    found = blobs.read("a/one")
    assert found is not None
    assert bytes(found) == b"begin end"
    assert found.readonly
    assert (blobs.size("a/one"), blobs.size("b/empty"), blobs.size("c")) == (9, 0, 0)
    assert sorted(blobs.keys()) == ["a/one", "b/empty"]
    assert list(blobs.keys("a/")) == ["a/one"]
    assert blobs.read("c") is None


def test_writing_the_same_again_makes_it_young(blobs: Blobs, clock: Clock) -> None:
    blobs.write({"a": (b"text",)})
    assert blobs.written_s("a") == 1_000.0
    clock.now_s += 50.0
    blobs.write({"a": (b"te", b"xt")})
    assert blobs.written_s("a") == 1_050.0
    clock.now_s += 50.0
    assert blobs.touch("a")
    assert not blobs.touch("b")
    assert (blobs.written_s("a"), blobs.written_s("b")) == (1_100.0, None)


def test_writing_puts_right_what_was_damaged(blobs: Blobs) -> None:
    blobs.write({"a": (b"damaged",)})
    blobs.write({"a": (b"correct",)})
    found = blobs.read("a")
    assert found is not None
    assert bytes(found) == b"correct"


def test_what_is_deleted_is_gone_but_stays_readable_to_those_who_have_it(blobs: Blobs) -> None:
    blobs.write({"a": (b"text",)})
    found = blobs.read("a")
    blobs.delete("a")
    blobs.delete("a")
    assert found is not None
    assert bytes(found) == b"text"
    assert blobs.read("a") is None


def test_a_key_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "store")
    for key in ("../out", "/etc/passwd", "a//b", ""):
        with pytest.raises(ValueError, match="not a key"):
            blobs.write({key: (b"",)})


def test_what_a_dead_writer_left_is_removed_once_it_is_old(tmp_path: Path, clock: Clock) -> None:
    blobs = FolderBlobs(tmp_path, clock)
    left = tmp_path / "a" / ".writing-1-1"
    left.parent.mkdir()
    left.write_text("half")
    os.utime(left, (900.0, 900.0))
    assert list(blobs.keys()) == []
    blobs.tidy(900.0)
    assert left.exists()
    blobs.tidy(901.0)
    assert not left.exists()


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.write({"a": (b"text",)})
    with pytest.raises(TypeError):
        blobs.write({"b": (b"begin", 3)})  # type: ignore[dict-item]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="refused"):
        FolderBlobs(tmp_path / "file").write({"a/b": (b"",)})
