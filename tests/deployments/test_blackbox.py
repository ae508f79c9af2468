from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from deployments.blackbox import HUNG_STATUS, BlackBox, note_of, suspects
from planner.cards import ExtensionId

SCALE = ExtensionId("scale.v2@1.0")
NOW_S = 1_700_000_000.0
DAY_S = 86_400.0

Deed = Callable[[BlackBox, bytes], None]


def dies_inside(box: BlackBox, note: bytes) -> None:
    box.enter(note)
    os._exit(3)


def is_killed_inside(box: BlackBox, note: bytes) -> None:
    box.enter(note)
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_its_second_call(box: BlackBox, note: bytes) -> None:
    box.enter(note)
    box.leave()
    dies_inside(box, note)


def dies_outside(box: BlackBox, note: bytes) -> None:
    box.enter(note)
    box.leave()
    os._exit(3)


def hangs(box: BlackBox, note: bytes) -> None:
    box.enter(note)
    time.sleep(60)


def is_busy_but_comes_back(box: BlackBox, note: bytes) -> None:
    for _ in range(40):
        box.enter(note)
        time.sleep(0.02)
        box.leave()


def child(folder: Path, does: Deed, hung_after_s: float = 10.0) -> int:
    """Has a process of its own do something with its box until it ends; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            does(BlackBox(folder, hung_after_s), note_of(SCALE))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(folder: Path, pid: int, extension: ExtensionId = SCALE) -> None:
    """What a process with this id leaves that died inside an extension. No process has an id beyond 2**22."""
    folder.mkdir(exist_ok=True)
    (folder / f"{2**22 + pid}-1.box").write_bytes(note_of(extension))


@pytest.mark.parametrize(
    ("does", "status", "suspected"),
    [
        (dies_inside, 3, True),
        (is_killed_inside, -9, True),
        (dies_in_its_second_call, 3, True),
        (dies_outside, 3, False),
    ],
)
def test_only_a_process_that_dies_inside_leaves_a_suspect(
    tmp_path: Path, does: Deed, status: int, suspected: bool
) -> None:
    assert child(tmp_path, does) == status
    assert suspects(tmp_path, NOW_S) == ({SCALE: 60.0} if suspected else {})
    assert not list(tmp_path.glob("*.box"))


def test_what_hangs_ends_its_process_and_is_suspected(tmp_path: Path) -> None:
    assert child(tmp_path, hangs, hung_after_s=0.3) == HUNG_STATUS
    assert suspects(tmp_path, NOW_S) == {SCALE: 60.0}


def test_many_short_calls_are_no_hanging(tmp_path: Path) -> None:
    assert child(tmp_path, is_busy_but_comes_back, hung_after_s=0.6) == 0
    assert suspects(tmp_path, NOW_S) == {}


def test_each_death_weighs_four_times_the_last_and_is_forgotten_after_a_day(tmp_path: Path) -> None:
    for n_deaths, for_s in ((1, 60.0), (2, 240.0), (3, 960.0)):
        die(tmp_path, n_deaths)
        assert suspects(tmp_path, NOW_S) == {SCALE: for_s}
    assert suspects(tmp_path, NOW_S + 900.0) == {SCALE: 60.0}
    assert suspects(tmp_path, NOW_S + 1000.0) == {SCALE: 0.0}
    assert suspects(tmp_path, NOW_S + DAY_S) == {}
    assert not list(tmp_path.iterdir())


def test_deaths_are_counted_per_extension(tmp_path: Path) -> None:
    other = ExtensionId("blur@1")
    die(tmp_path, 1)
    die(tmp_path, 2)
    die(tmp_path, 3, other)
    assert suspects(tmp_path, NOW_S) == {SCALE: 240.0, other: 60.0}


def test_an_old_death_does_not_make_a_new_one_weigh_more(tmp_path: Path) -> None:
    die(tmp_path, 1)
    assert suspects(tmp_path, NOW_S)
    die(tmp_path, 2)
    assert suspects(tmp_path, NOW_S + DAY_S + 1.0) == {SCALE: 60.0}


def test_the_longest_id_is_a_suspect_like_any_other(tmp_path: Path) -> None:
    longest = ExtensionId("a" * 127 + "@" + "1" * 127)
    die(tmp_path, 1, longest)
    assert suspects(tmp_path, NOW_S) == {longest: 60.0}


def test_a_process_that_is_alive_is_no_suspect_though_it_is_inside(tmp_path: Path) -> None:
    box = BlackBox(tmp_path)
    box.enter(note_of(SCALE))
    assert suspects(tmp_path, NOW_S) == {}
    assert len(list(tmp_path.glob("*.box"))) == 1
    box.leave()
    box.close()
    assert not list(tmp_path.iterdir())


def test_a_clock_that_was_set_by_a_second_makes_nobody_a_suspect(tmp_path: Path) -> None:
    started_s = int(psutil.Process().create_time())
    (tmp_path / f"{os.getpid()}-{started_s - 1}.box").write_bytes(note_of(SCALE))
    assert suspects(tmp_path, NOW_S) == {}


def test_another_process_that_got_the_same_id_does_not_hide_a_death(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}-1.box").write_bytes(note_of(SCALE))
    assert suspects(tmp_path, NOW_S) == {SCALE: 60.0}


def test_one_death_is_counted_once_though_many_ask_at_the_same_time(tmp_path: Path) -> None:
    for round_ in range(20):
        folder = tmp_path / str(round_)
        die(folder, 1)
        start = threading.Barrier(4)

        def ask(folder: Path = folder, start: threading.Barrier = start) -> None:
            start.wait()
            suspects(folder, NOW_S)

        with ThreadPoolExecutor(4) as pool:
            for asked in [pool.submit(ask) for _ in range(4)]:
                asked.result()
        assert suspects(folder, NOW_S) == {SCALE: 60.0}


def test_a_box_that_is_closed_ends_its_watch(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    box = BlackBox(tmp_path)
    (watch,) = set(threading.enumerate()) - before
    box.close()
    watch.join(10.0)
    assert not watch.is_alive()
