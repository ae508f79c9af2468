"""`fenix choice`, on databases as a cluster leaves them; none runs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from click.testing import Result

from fenix.commands.choice import PolicyName, seconds_of
from lineage.database import open_database
from lineage.journal import JournalStore
from planner.catalogue import Change
from planner.catalogue_store import SqlCatalogueStore
from planner.choice.controller import load, save, untrained
from planner.choice.offline import CONTROLLER, POLICIES
from planner.errors import BadRequest
from tests.fenix.test_cli import run
from tests.planner.choice.journals import CATALOGUE, GOAL, journal_world


def fill(url: str, n: int = 600, **more: float) -> None:
    """A catalogue, and `n` outcomes up to now."""
    catalogue = SqlCatalogueStore(url)
    catalogue.write(Change(1, tuple(CATALOGUE.cards.values()), tuple(CATALOGUE.goals.values())))
    catalogue.close()
    journal = JournalStore(open_database(url))
    journal_world(journal, n, now_s=time.time(), **more)  # type: ignore[arg-type]
    journal.close()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    fill(f"sqlite:///{folder}/fenix.db")
    return folder


@pytest.fixture
def here(state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FENIX_STATE_DIR", str(state))
    return state


def refused(code: int, *words: str) -> str:
    """What is said on stderr, in one line."""
    result = run("choice", *words, "-q", width=4_000)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def told(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_policies_are_compared_with_intervals_and_the_best_comes_first(here: Path) -> None:
    shown = told(run("choice", "evaluate", GOAL, width=120))
    assert re.search(r"^outcomes +600 choices for 600 requests, 5\d\d of them judged *$", shown, re.MULTILINE)
    assert re.search(r"^learned from +the first 300; evaluated on the other 300 *$", shown, re.MULTILINE)
    number = r"[+-]?\d\.\d{4} ± \d\.\d{4}"
    for name in POLICIES:
        pattern = rf"^{name} +{number} +{number} +{number} +{number} +\d+ *$"
        assert re.search(pattern, shown, re.MULTILINE), name
    assert re.search(r"^\(as it was\) +-0\.\d{4} ±", shown, re.MULTILINE)
    assert "controller" not in shown


def test_as_json_there_is_all_that_is_known(here: Path) -> None:
    words = ("choice", "evaluate", GOAL, "--policy", "thompson", "--policy", "first", "--limit", "400")
    result = run(*words, "-o", "json")
    found = json.loads(told(result))
    assert "read 400 outcomes of 400 requests" in result.stderr
    assert (found["n"], found["n_requests"], found["n_learned_from"], found["left_out"]) == (400, 400, 200, {})
    assert [row["policy"] for row in found["policies"]] == ["thompson", "first"]
    row = found["policies"][0]
    for name in ("doubly_robust", "gain", "ips", "snips"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    assert 0 < row["effective_n"] <= row["n"] == 200
    assert any("effective" in said or "count" in said for said in row["warnings"]) == (row["effective_n"] < 100)
    assert json.loads(told(run(*words, "-o", "json", "-q"))) == found


def test_a_trained_controller_is_compared_kept_and_its_way_into_service_told(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "controller.safetensors"
    found = json.loads(told(run("choice", "train", GOAL, "--out", str(out), "-o", "json")))
    assert (found["weights"], found["n_trained"], found["other_goals"]) == (str(out), 300, ["other"])
    assert load(out).goal == GOAL
    by_name = {row["policy"]: row for row in found["policies"]}
    assert sorted(by_name) == sorted([*POLICIES, CONTROLLER])
    assert by_name["controller"]["gain"]["low"] > 0.1
    assert by_name["controller"]["doubly_robust"]["value"] > by_name["first"]["doubly_robust"]["high"]
    assert found["verdict"][0].startswith("The controller is better than what served: +0.")

    words = ("choice", "evaluate", GOAL, "--policy", "controller")
    evaluated = told(run(*words, "--set", f"choice.weights={out}", width=200))
    assert re.search(r"^controller +-0", evaluated, re.MULTILINE)
    assert "looks better than it is" not in evaluated

    shown = told(run("choice", "train", GOAL, "--out", str(out), "--limit", "200", width=300))
    assert f"fenix up --set choice.policy=controller --set choice.weights={out}" in shown
    assert "of other it knows nothing but what is predicted" in shown
    assert list(tmp_path.iterdir()) == [out]
    assert "looks better than it is" in told(run(*words, "--weights", str(out), width=200))


def test_a_controller_that_is_no_better_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENIX_STATE_DIR", str(tmp_path))
    fill(
        f"sqlite:///{tmp_path}/fenix.db", 400, propensities=(0.02, 0.49, 0.49), best={"ann": "plan-b", "bob": "plan-b"}
    )
    found = json.loads(told(run("choice", "train", GOAL, "--out", str(tmp_path / "weights"), "-o", "json")))
    shown = told(run("choice", "train", GOAL, "--out", str(tmp_path / "weights"), width=200))
    assert not found["is_better"]
    assert found["verdict"][0] in shown
    assert "Nothing uses them until choice.policy is controller" in shown


def test_they_read_postgresql_and_sqlite_alike(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FENIX_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("FENIX_DATABASE_URL", database_url)
    fill(database_url, 200)
    words = ("choice", "evaluate", GOAL, "--policy", "first", "--policy", "greedy", "-o", "json")
    assert json.loads(told(run(*words)))["n"] == 200


def test_what_cannot_be_evaluated_is_refused_with_a_way_out(here: Path, tmp_path: Path) -> None:
    assert "Nearest: read" in refused(4, "evaluate", "reed")
    said = refused(2, "evaluate", "other")
    assert "no outcomes of goal 'other'" in said
    assert "Look further back" in said
    assert "7d" in refused(2, "evaluate", GOAL, "--since", "yesterday")
    assert "no time" in refused(2, "train", GOAL, "--since", "0d", "--out", str(tmp_path / "x"))
    assert "`fenix choice train`" in refused(2, "evaluate", GOAL, "--policy", "controller")
    assert run("choice", "evaluate", GOAL, "--policy", "best").exit_code == 2
    assert run("choice", "evaluate", GOAL, "--limit", "0").exit_code == 2
    broken = tmp_path / "broken"
    broken.write_bytes(b"nothing")
    assert "cannot be read as weights" in refused(2, "evaluate", GOAL, "--weights", str(broken))


def test_weights_that_the_settings_name_in_vain_are_left_out_with_a_word(here: Path) -> None:
    result = run("choice", "evaluate", GOAL, "--limit", "100", "--set", "choice.weights=/nowhere/at/all", width=300)
    assert "the controller is left out: all cannot be read" in result.stderr
    assert re.search(r"^thompson ", told(result), re.MULTILINE)


def test_outcomes_without_truth_or_propensities_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENIX_STATE_DIR", str(tmp_path))
    fill(f"sqlite:///{tmp_path}/fenix.db", 60, judged=0.0)
    said = refused(2, "evaluate", GOAL)
    assert "none has a truth or a rating" in said
    assert "fenix feedback" in said


@pytest.mark.parametrize("place", ["{}", "{}/none/weights"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_trained(
    place: str, here: Path, tmp_path: Path
) -> None:
    said = refused(2, "train", GOAL, "--out", place.format(tmp_path))
    assert "cannot be written" in said
    assert "--out" in said


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    out = tmp_path / "weights"
    save(untrained(["a"], [], np.random.default_rng(0)), out)
    before = out.read_bytes()

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused(2, "train", GOAL, "--out", str(out), "--limit", "60")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_database_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENIX_STATE_DIR", str(tmp_path / "state"))
    assert "`fenix up` makes it" in refused(1, "evaluate", GOAL)
    assert not (tmp_path / "state").exists()
    monkeypatch.setenv("FENIX_DATABASE_URL", "postgresql+psycopg://127.0.0.1:1/fenix")
    assert "the database does not open" in refused(1, "evaluate", GOAL)


def test_times_are_a_number_and_a_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "30m", "1.5h", "7d", "2w")] == [90, 1_800, 5_400, 604_800, 1_209_600]
    for text in ("", "7", "d", "-1d", "0s", "7 d", "1y", "nan", "1e3s"):
        with pytest.raises(BadRequest):
            seconds_of(text)


def test_policies_are_those_of_the_settings() -> None:
    assert [one.value for one in PolicyName] == [*POLICIES, CONTROLLER]
