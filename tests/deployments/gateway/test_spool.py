from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.gateway.spool import Spool
from tests.lineage.outcomes import RUN, chunk

A, B, C = (character * 20 for character in "abc")
MUCH = 1 << 20


def piece(seq: int, run: str = A) -> bytes:
    return chunk(seq, [seq % 10] * 3, run=run)


def all_of(spool: Spool) -> list[tuple[str, bytes]]:
    """Everything, taken off."""
    found = []
    while (front := spool.front(1)) is not None:
        run, chunks = front
        found += [(run, one) for one in chunks]
        spool.done(len(chunks))
    return found


def test_what_goes_in_first_comes_out_first_and_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path, A, MUCH, segment_bytes=500)
    assert spool.front(MUCH) is None
    for seq in range(10):
        assert spool.append(piece(seq))
    assert len(list(tmp_path.glob("*.spool"))) > 2
    assert spool.has_own
    front = spool.front(1)
    assert front == (A, [piece(0)])
    assert spool.front(1) == front
    spool.done(1)
    assert all_of(spool) == [(A, piece(seq)) for seq in range(1, 10)]
    assert (spool.n_bytes, spool.has_own) == (0, False)
    assert spool.append(piece(11))
    assert all_of(spool) == [(A, piece(11))]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_spool_takes_nothing_more_until_there_is_room(tmp_path: Path) -> None:
    size = len(piece(0)) + len(piece(1)) + 8
    spool = Spool(tmp_path, A, size, segment_bytes=1)
    assert [spool.append(piece(seq)) for seq in range(3)] == [True, True, False]
    assert spool.n_bytes == size
    spool.front(1)
    spool.done(1)
    assert spool.append(piece(0))
    assert [one for _, one in all_of(spool)] == [piece(1), piece(0)]
    spool.close()


def test_the_next_process_finds_what_dead_ones_left_and_takes_it_first(tmp_path: Path) -> None:
    for run in (A, B):
        dead = Spool(tmp_path, run, MUCH)
        dead.append(piece(1, run))
        dead.append(piece(4, run))
        dead.close()
    alive = Spool(tmp_path, C, MUCH)
    assert alive.has_others
    assert not alive.has_own
    alive.append(piece(1, C))
    assert all_of(alive) == [(A, piece(1)), (A, piece(4)), (B, piece(1, B)), (B, piece(4, B)), (C, piece(1, C))]
    alive.close()
    assert list(tmp_path.iterdir()) == []


def test_what_belongs_to_a_living_process_is_left_alone(tmp_path: Path) -> None:
    one, other = Spool(tmp_path, A, MUCH), Spool(tmp_path, B, MUCH)
    one.append(piece(1))
    third = Spool(tmp_path, C, MUCH)
    assert third.front(MUCH) is None
    assert all_of(one) == [(A, piece(1))]
    with pytest.raises(OSError, match="in use"):
        Spool(tmp_path, A, MUCH)
    for spool in (one, other, third):
        spool.close()


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_file_that_was_cut_short_gives_what_is_whole(tmp_path: Path, cut: int) -> None:
    dead = Spool(tmp_path, A, MUCH)
    for seq in (0, 3, 6):
        dead.append(piece(seq))
    dead.close()
    (path,) = tmp_path.glob("*.spool")
    os.truncate(path, path.stat().st_size - cut)
    alive = Spool(tmp_path, B, MUCH)
    assert [one for _, one in all_of(alive)] == [piece(0), piece(3)]
    assert alive.n_damaged == 1
    alive.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("at", "left"), [(2, []), (50, [3, 6]), (-50, [0, 3])])
def test_a_file_with_a_wrong_byte_gives_what_can_be_read(tmp_path: Path, at: int, left: list[int]) -> None:
    dead = Spool(tmp_path, A, MUCH)
    for seq in (0, 3, 6):
        dead.append(piece(seq))
    dead.close()
    (path,) = tmp_path.glob("*.spool")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    alive = Spool(tmp_path, B, MUCH)
    front = alive.front(MUCH)
    assert (front[1] if front else []) == [piece(seq) for seq in left]
    assert [one for _, one in all_of(alive)] == [piece(seq) for seq in left]
    assert alive.n_damaged == 1
    alive.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_opened_for_now_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, A, MUCH)
    spool.append(piece(0))

    def too_many(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", too_many)
        with pytest.raises(OSError, match="Too many"):
            spool.front(MUCH)
    assert [one for _, one in all_of(spool)] == [piece(0)]
    spool.close()


def test_a_disk_that_fails_takes_nothing_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, A, MUCH)
    spool.append(piece(0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            spool.append(piece(3))
    spool.append(piece(6))
    assert [one for _, one in all_of(spool)] == [piece(0), piece(6)]
    spool.close()


_APPEND = """
import sys
from pathlib import Path
from deployments.gateway.spool import Spool
from tests.lineage.outcomes import chunk

spool = Spool(Path(sys.argv[1]), "0123456789abcdef0123", 1 << 20, segment_bytes=2_000)
for seq in range(1_000):
    spool.append(chunk(seq, [1]))
    print(seq, flush=True)
"""


def test_what_was_taken_survives_a_kill_right_after(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _APPEND, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        taken = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        taken += [int(line) for line in process.stdout]
    alive = Spool(tmp_path, A, MUCH)
    found = all_of(alive)
    assert found[: len(taken)] == [(RUN, chunk(seq, [1])) for seq in taken]
    alive.close()
    assert list(tmp_path.iterdir()) == []
