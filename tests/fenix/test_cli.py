"""The command line, against a gateway that really listens."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from deployments.gateway.metadata import server_version
from fenix.cli import app
from fenix.output import EXIT_CODES
from tests.deployments.gateway.engines import Served, served_http

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with served_http() as served:
        yield served


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state_dir: no cluster of this machine is met by chance."""
    monkeypatch.setenv("FENIX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("FENIX_HTTP_PORT", "1")
    return tmp_path / "state"


def run(*words: str, gateway: Served | None = None, width: int = 100) -> Result:
    at = ["--url", f"http://{gateway.address}"] if gateway else []
    result = CliRunner().invoke(app, [*words, *at], env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"})
    assert "Traceback" not in result.output
    return result


class TestInfer:
    def test_prints_the_rows_and_how_they_came_about(self, gateway: Served) -> None:
        result = run("infer", "doubling", "-i", "x=[[1, 2], [3, 4]]", gateway=gateway)
        assert result.exit_code == 0
        assert re.search(r"^ *0 +2 4 *$", result.stdout, re.MULTILINE)
        assert re.search(r"^ *1 +6 8 *$", result.stdout, re.MULTILINE)
        assert re.search(r"^confidence +75.0 % at least", result.stdout, re.MULTILINE)
        assert result.stderr == ""

    def test_data_is_json_or_yaml_on_stdout_alone(self, gateway: Served) -> None:
        wanted = {
            "model": "doubling",
            "version": "1",
            "outputs": {"y": [[2.0, 4.0]]},
            "confidence": 0.75,
            "plan": "p-double",
            "trace_id": "t1",
            "flags": [],
            "missing": {},
        }
        for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
            result = run("infer", "--sentence", "double it", "-i", "[[1, 2]]", "-o", form, gateway=gateway)
            assert read(result.stdout) == wanted
            assert result.stderr == "understood as doubling (sureness 1.00)\n"

    def test_terms_reach_the_gateway(self, gateway: Served) -> None:
        options = "--deadline-ms 500 --max-cost 2 --min-accuracy 0.5 --priority 0 --user ann --tag pii --tag eu"
        more = "--partial --min-confidence 0.7"
        result = run(
            "infer", "doubling", "-i", "[[1]]", *options.split(), "--purpose", "a trial", *more.split(), gateway=gateway
        )
        assert result.exit_code == 0
        assert gateway.engine.seen[-1].terms == {
            "deadline_ms": 500,
            "max_cost": 2,
            "min_accuracy": 0.5,
            "priority": 0,
            "user": "ann",
            "tags": ["pii", "eu"],
            "purpose": "a trial",
            "partial": True,
            "min_confidence": 0.7,
        }

    def test_wanted_features_are_asked_with_their_types(self, gateway: Served) -> None:
        words = "infer --want vector/out -i x:FP32=[[1]] --type x=vector --select y --select y.confidence -o json"
        result = run(*words.split(), gateway=gateway)
        assert json.loads(result.stdout)["outputs"] == {"y": [[2.0]], "y.confidence": [0.75]}
        assert gateway.engine.seen[-1].types == {"x": "vector"}
        steps = run("infer", "--want", "vector/out", "-i", "x:FP32=[[1]]", gateway=gateway)
        assert re.search(r"double@1 +1 +0.00 ms +0.20 ms", steps.stdout)

    def test_a_step_says_that_its_rows_were_known_or_its_call_sent_twice(self) -> None:
        from fenix.commands.asking import _remarks

        assert _remarks({"cached": False, "hedged": False, "note": ""}) == ""
        assert _remarks({"cached": True, "hedged": False, "note": ""}) == "cached"
        assert _remarks({"cached": False, "hedged": True, "note": "fallback for a@1"}) == "hedged; fallback for a@1"

    @pytest.mark.parametrize("ending", ["npy", "npz", "json", "csv"])
    def test_reads_inputs_from_files(self, gateway: Served, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"rows.{ending}"
        rows = np.array([[1.5, 2.0], [3.0, 4.0]])
        if ending == "npy":
            np.save(path, rows)
        elif ending == "npz":
            np.savez(path, x=rows)
        else:
            path.write_text("a,b\n1.5,2\n3,4\n" if ending == "csv" else json.dumps({"x": rows.tolist()}))
        result = run("infer", "doubling", "-i", f"@{path}", "-o", "json", gateway=gateway)
        assert json.loads(result.stdout)["outputs"] == {"y": [[3.0, 4.0], [6.0, 8.0]]}

    def test_saves_outputs_in_a_file(self, gateway: Served, tmp_path: Path) -> None:
        path = tmp_path / "out.npz"
        result = run("infer", "doubling", "-i", "[[1, 2]]", "--save", str(path), gateway=gateway)
        assert result.exit_code == 0
        with np.load(path, allow_pickle=False) as saved:
            np.testing.assert_array_equal(saved["y"], [[2.0, 4.0]])
        assert run("infer", "doubling", "-i", "[[1]]", "--save", "out.csv", gateway=gateway).exit_code == 2

    def test_many_rows_are_cut_in_the_table_only(self, gateway: Served) -> None:
        rows = json.dumps([[row] for row in range(25)])
        result = run("infer", "doubling", "-i", rows, gateway=gateway)
        assert "... and 5 more rows" in result.stdout
        whole = run("infer", "doubling", "-i", rows, "-o", "json", gateway=gateway)
        assert len(json.loads(whole.stdout)["outputs"]["y"]) == 25

    def test_not_a_number_is_null_in_json(self) -> None:
        from fenix.commands.asking import plain

        assert plain(np.array([[1.0, np.nan], [np.inf, 2.0]])) == [[1.0, None], [None, 2.0]]

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            (["doubling", "-i", "x=[[1"], 2, "is no JSON"),
            (["doubling", "-i", "x=[[1], [2, 3]]"], 2, "ragged"),
            (["doubling", "-i", 'x=[["a"]]'], 2, "no FP32"),
            (["echo_int8", "-i", "x=[[1.5]]"], 2, "do not fit into INT8"),
            (["doubling", "-i", "y=[[1]]"], 2, "There are: x."),
            (["doubling", "-i", "x:FP31=[[1]]"], 2, "FP32"),
            (["doubling", "-i", "x=[[1]]", "-i", "x=[[2]]"], 2, "given twice"),
            (["doubling", "-i", "x=@none.npy"], 2, "cannot be read"),
            (["doubling"], 2, "--input"),
            (["doubling", "--sentence", "double", "-i", "[[1]]"], 2, "exactly one way"),
            (["-i", "[[1]]"], 2, "exactly one way"),
            (["doubling", "-i", "[[1]]", "--priority", "11"], 2, "0 (most urgent) to 9"),
            (["doubling", "-i", "[[1]]", "--deadline-ms", "-1"], 2, "deadline_ms"),
            (["doublin", "-i", "[[1]]"], 4, "Nearest: doubling"),
            (["raising", "-i", "[[1]]"], 1, "internal error"),
            (["full", "-i", "[[1]]"], 1, "the queue of full@1 is full. Retry."),
            (["--sentence", "fly me", "-i", "[[1]]"], 5, "Nearest: doubling."),
            (["--want", "label/moon", "-i", "x=[[1]]"], 5, "vector/out"),
            (["doubling", "-i", "[[1]]", "--min-accuracy", "1"], 5, "Ask for less."),
        ],
    )
    def test_errors_say_what_to_do_and_have_their_code(
        self, gateway: Served, words: list[str], code: int, says: str
    ) -> None:
        result = run("infer", *words, gateway=gateway)
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.startswith(("Error: ", "understood"))
        assert says in result.stderr
        assert re.search(r"[.!?:] [A-Z`]", result.stderr), "a second sentence says what to do"


class TestPlan:
    def test_shows_the_winner_the_seconds_and_the_rejected(self, gateway: Served) -> None:
        result = run("plan", "doubling", gateway=gateway)
        assert result.exit_code == 0
        assert re.search(r"^because +the only one", result.stdout, re.MULTILINE)
        assert "x ← your x" in result.stdout
        assert "answer y ← y of step 0" in result.stdout
        assert re.search(r"p-double .*dearer", result.stdout)

    def test_explains_sentences_and_wanted_features_with_and_without_inputs(self, gateway: Served) -> None:
        for words in (
            ["--sentence", "double it"],
            ["--sentence", "double it", "-i", "[[1]]"],
            ["--want", "vector/out", "-i", "x:FP32=[[1]]", "--type", "x=vector"],
            ["double@1", "-i", "[[1], [2]]"],
        ):
            result = run("plan", *words, "-o", "json", gateway=gateway)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["chosen"]["id"] == "p-double"

    def test_says_for_which_rows_a_later_step_of_a_cascade_runs(self) -> None:
        from rich.console import Console

        from fenix.commands.asking import _explained

        def step(id: int, extension: str, guard: dict[str, Any] | None) -> dict[str, Any]:
            inputs = [{"port": "image", "sources": [{"step": -1, "port": "image"}]}]
            return {
                "id": id,
                "extension": extension,
                "inputs": inputs,
                "fallbacks": ["spare@1"],
                "guard": guard,
                "p50_ms": 1.0,
            }

        sources = [{"step": 0, "port": "digit"}, {"step": 1, "port": "digit"}]
        chosen = {
            "id": "p1",
            "kind": "cascade",
            "reason": "it is best",
            "prediction": {"accuracy": 0.97, "p50_ms": 1.0, "p99_ms": 20.0, "cost": 0.5},
            "steps": [step(0, "cheap@1", None), step(1, "dear@1", {"step": 0, "below": 0.9})],
            "outputs": [{"port": "digit", "sources": sources}],
        }
        figures = {"elapsed_ms": 1.0, "expanded": 3, "epoch": 1, "complete": False, "goal": "read-digit"}
        explanation = {**figures, "sureness": 0.8, "chosen": chosen, "others": [], "rejected": []}
        console = Console(width=110)
        with console.capture() as captured:
            for part in _explained(explanation):
                console.print(part)
        text = captured.get()
        assert re.search(r"1 +dear@1 +image ← your image +step 0 is less than 90.0 % sure +1.00 ms +spare@1", text)
        assert "answer digit ← digit of step 1, else digit of step 0" in text
        assert "understood from the sentence, sureness 0.80" in text
        assert "the search budget ended first" in text

    def test_exits_with_5_where_there_is_no_plan(self, gateway: Served) -> None:
        assert run("plan", "doubling", "--min-accuracy", "1", gateway=gateway).exit_code == 5


class TestCatalogue:
    def test_lists_extensions_goals_and_features(self, gateway: Served) -> None:
        assert re.search(r"double@1 +function +vector → vector/out", run("get", "extensions", gateway=gateway).stdout)
        assert re.search(r"doubling +vector → vector/out +Twice as much", run("get", "goals", gateway=gateway).stdout)
        features = json.loads(run("get", "features", "-o", "json", gateway=gateway).stdout)
        row = next(row for row in features if (row["type"], row["tensor"]) == ("vector/out", "FP32[-1]"))
        assert "double@1" in row["given_by"]
        assert row["wanted_by"] == ["doubling"]
        assert "vector/out" in run("get", "features", gateway=gateway).stdout

    def test_describes_a_goal_or_an_extension(self, gateway: Served) -> None:
        goal = run("describe", "doubling", gateway=gateway)
        assert re.search(r"^takes +x: vector FP32\[-1\]", goal.stdout, re.MULTILINE)
        for name in ("double", "double@1"):
            card = run("describe", name, gateway=gateway)
            assert re.search(r"^extension +double@1", card.stdout, re.MULTILINE)
            assert "the author's guess" in card.stdout
            assert re.search(r"^runs +remote \(its card says auto\)", card.stdout, re.MULTILINE)
            assert re.search(r"^cache +shared: kept results are for everyone", card.stdout, re.MULTILINE)
        assert json.loads(run("describe", "double", "-o", "json", gateway=gateway).stdout)["id"] == "double@1"

    def test_names_what_is_near_where_there_is_nothing_of_that_name(self, gateway: Served) -> None:
        result = run("describe", "doublin", gateway=gateway)
        assert result.exit_code == 4
        assert "Nearest: doubling" in result.stderr


class TestWithoutACluster:
    def test_status_says_so_and_exits_with_3(self, nowhere: Path) -> None:
        result = run("status", "-o", "json")
        assert result.exit_code == 3
        assert json.loads(result.stdout)["state"] == "down"
        assert "fenix up" in run("status").stdout

    def test_down_has_nothing_to_end(self, nowhere: Path) -> None:
        result = run("down", "-o", "json", "-q")
        assert (result.exit_code, json.loads(result.stdout)["n_ended"]) == (0, 0)

    @pytest.mark.parametrize(
        "words",
        [
            ["get", "goals"],
            ["describe", "x"],
            ["plan", "x"],
            ["infer", "x", "-i", "[[1]]"],
            ["deploy", "module:Class"],
            ["remove", "x@1"],
        ],
    )
    def test_every_command_that_needs_one_exits_with_3(self, nowhere: Path, words: list[str]) -> None:
        result = run(*words)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "`fenix up`" in result.stderr

    def test_wrong_settings_exit_with_2_and_name_what_is_near(self, nowhere: Path, tmp_path: Path) -> None:
        result = run("up", "--set", "htp_port=3")
        assert result.exit_code == 2
        assert "http_port" in result.stderr
        assert run("up", "--set", "http_port").exit_code == 2
        assert run("status", "--settings", str(tmp_path / "none.yaml")).exit_code == 2

    def test_deploy_and_remove_want_something_to_do(self, nowhere: Path, tmp_path: Path) -> None:
        goals = tmp_path / "goals.yaml"
        goals.write_text("goals: []")
        for words in (["deploy"], ["remove"], ["deploy", "a.yaml", "-p", "x=1"], ["deploy", "--goal", "none.yaml"]):
            assert run(*words).exit_code == 2


def test_the_version_is_that_of_the_gateway() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"fenix {server_version()}\n", "")


@pytest.mark.parametrize("words", [["get", "foo"], ["get", "goals", "-o", "foo"]])
def test_a_choice_that_is_none_is_wrong_usage_and_lists_the_choices(words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(r": 'foo' is not one of '\w+', '\w+', '\w+'\.", result.stderr)
    assert "Value error" not in result.stderr


def test_the_options_before_a_command_are_documented() -> None:
    group: Any = typer.main.get_command(app)
    table = DOCS.read_text(encoding="utf-8").split("\n## ")[0]
    for parameter in group.params:
        assert all(f"`{word}`" in table for word in parameter.opts), parameter.name


def test_an_address_that_is_none_is_wrong_usage() -> None:
    assert run("get", "goals", "--url", "localhost:80").exit_code == 2
    assert run("get", "goals", "--url", "http://127.0.0.1:1").exit_code == 3


def test_an_unforeseen_error_shows_no_trace_unless_asked_for(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("fenix.commands.catalogue.emit", broken)
    result = run("get", "goals", gateway=gateway)
    assert result.exit_code == 1
    assert "KeyError: 'oops'" in result.stderr
    assert "--debug" in result.stderr
    assert isinstance(run("--debug", "get", "goals", gateway=gateway).exception, KeyError)


def test_help_answers_at_once() -> None:
    code = "import sys; from fenix.cli import main; sys.argv = ['fenix', '--help']; main()"

    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor, so that a busy machine does not count
        return used.ru_utime + used.ru_stime

    before_s = cpu_s()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert cpu_s() - before_s < 0.8  # 0.25 s on an idle machine
    heavy = (
        "import fenix.cli, sys; print([m for m in ('ray', 'torch', 'mlflow', 'numpy', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _commands() -> dict[str, Any]:
    """By name; a group of commands has the parameters of all of them."""
    group: Any = typer.main.get_command(app)
    found = dict(group.commands)
    for command in found.values():
        for part in getattr(command, "commands", {}).values():
            command.params = [*command.params, *part.params]
    return found


def _section(name: str) -> str:
    text = DOCS.read_text(encoding="utf-8")
    assert f"\n## {name}\n" in text, f"docs/cli.md has no section `{name}`"
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", sorted(_commands()))
def test_every_argument_and_option_is_documented(name: str) -> None:
    section = _section(f"fenix {name}")
    for parameter in _commands()[name].params:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        words = (
            [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.metavar or parameter.name.upper()]
        )
        line = ", ".join(f"`{word}`" for word in words)
        assert f"| {line} |" in section, f"`fenix {name}` lacks a line on {line}"


def test_the_docs_name_no_command_option_or_exit_code_that_is_not_there() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert set(re.findall(r"^## fenix (\w+)$", text, re.MULTILINE)) == set(_commands())
    for name, command in _commands().items():
        known = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
        written = {
            w
            for line in _section(f"fenix {name}").splitlines()
            if line.startswith("| `-")
            for w in re.findall(r"`(--?[a-z-]+)`", line.split("|")[1])
        }
        assert written <= known, f"fenix {name}"
    codes = {int(code): meaning for code, meaning in re.findall(r"^\| `(\d)` \| (.*) \|$", text, re.MULTILINE)}
    assert codes == EXIT_CODES
