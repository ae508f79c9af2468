"""`fenix choice`: what other policies of choosing would have brought, and a controller trained from the journal.

Both read the database of the settings themselves, so they work whether or not a cluster runs, and take nothing from it.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import Output, Overrides, Quiet, SettingsFile, load_settings
from fenix.output import Format, Progress, emit, fail, grid, pairs
from planner.errors import ArtifactRefused, BadRequest, ClusterDown, StoreUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.settings import ChoiceSettings, Settings
    from lineage.quality.intervals import Estimate
    from planner.catalogue import Catalogue
    from planner.choice.controller import Weights
    from planner.choice.evaluation import Evaluation
    from planner.choice.journaled import Journaled
    from planner.choice.offline import Comparison, Verdict

choice = typer.Typer(
    name="choice",
    help="Compare policies of choosing plans on the journal, and train the controller from it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class PolicyName(enum.StrEnum):
    """As `choice.policy` has them."""

    FIRST = "first"
    GREEDY = "greedy"
    THOMPSON = "thompson"
    EXP3 = "exp3"
    EXP4 = "exp4"
    CONTROLLER = "controller"


Goal = Annotated[str, typer.Argument(metavar="GOAL", show_default=False, help="A goal.")]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="How far back to read: 90s, 30m, 12h, 7d or 4w.")]
Limit = Annotated[
    int, typer.Option("--limit", min=1, max=1_000_000, metavar="N", help="Most outcomes to read; the latest count.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of what is drawn by chance; the same one draws the same.")]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


@choice.command()
def evaluate(
    goal: Goal,
    since: Since = "7d",
    limit: Limit = 10_000,
    policy: Annotated[
        list[PolicyName] | None,
        typer.Option("--policy", help="A policy to compare; may be repeated.", show_default="all of them"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="The controller's weights.", show_default="choice.weights"),
    ] = None,
    seed: Seed = 0,
    settings: SettingsFile = None,
    set_: Overrides = None,
    output: Output = Format.TABLE,
    quiet: Quiet = False,
) -> None:
    """Show what other policies would have brought on the requests that were served."""
    from planner.choice.offline import POLICIES, compared

    say, wanted = Progress(quiet), _settings(settings, set_)
    asked = [one.value for one in policy or PolicyName]
    known = _weights(weights, wanted.choice, asked, is_asked=policy is not None)
    journaled, _ = _read(wanted, goal, since, limit, say)
    names = [name for name in asked if name in POLICIES]
    found = compared(journaled, names, wanted.choice.share, wanted.choice.burst, known, seed)
    say("compared")
    emit(_data(journaled, found), output, lambda: _shown(journaled, found))


@choice.command()
def train(
    goal: Goal,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", show_default=False, help="Where to write the weights to.")
    ],
    since: Since = "30d",
    limit: Limit = 20_000,
    seed: Seed = 0,
    settings: SettingsFile = None,
    set_: Overrides = None,
    output: Output = Format.TABLE,
    quiet: Quiet = False,
) -> None:
    """Train the controller on the first half of the outcomes, and compare it with the others on the second."""
    from planner.choice.controller import save
    from planner.choice.offline import POLICIES, compared, trained, verdict

    say, wanted = Progress(quiet), _settings(settings, set_)
    path = out.expanduser().absolute()
    _check_writable(path)
    journaled, catalogue = _read(wanted, goal, since, limit, say)
    weights = trained(journaled, seed)
    say("trained")
    found = compared(journaled, tuple(POLICIES), wanted.choice.share, wanted.choice.burst, weights, seed)
    told = verdict(found)
    say("compared")
    try:
        save(weights, path)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None
    others = sorted(set(catalogue.goals) - {goal})
    data = {
        **_data(journaled, found),
        "n_trained": found.n_learned_from,
        "weights": str(path),
        "is_better": told.is_better,
        "verdict": list(told.said),
        "other_goals": others,
    }
    emit(data, output, lambda: [*_shown(journaled, found), *_advised(told, path, others)])


# --------------------------------------------------------------------------------------------------------- what is read


def _settings(file: Path | None, overrides: list[str] | None) -> Settings:
    """Those of the running cluster, so that `up --set database_url=...` counts; where some are overridden here, or none
    runs, those of the file."""
    settings = load_settings(file, overrides)
    if not overrides:
        from cluster.lifecycle import running_settings

        with contextlib.suppress(ClusterDown):
            settings = running_settings(settings)
    return settings


@dataclass(frozen=True, slots=True)
class _Stores:
    journal: Any
    catalogue: Catalogue


@contextlib.contextmanager
def _stores(url: str) -> Iterator[_Stores]:
    from lineage.database import is_missing, open_database
    from lineage.journal import JournalStore
    from planner.catalogue_store import SqlCatalogueStore

    if is_missing(url):
        raise StoreUnavailable(
            "there is no database where the settings say.",
            hint="`fenix up` makes it; --settings or --set database_url=URL names another.",
        )
    with contextlib.ExitStack() as stack:
        catalogue = SqlCatalogueStore(url)
        stack.callback(catalogue.close)
        journal = JournalStore(open_database(url))
        stack.callback(journal.close)
        yield _Stores(journal, catalogue.load())


def _read(settings: Settings, goal: str, since: str, limit: int, say: Progress) -> tuple[Journaled, Catalogue]:
    from planner.choice.journaled import read

    back_s = seconds_of(since)
    with _stores(settings.database_url) as stores:
        now_s = time.time()
        found = read(stores.journal, stores.catalogue, goal, now_s - back_s, now_s, limit)
    say(f"read {len(found.log):,} outcomes of {found.n_requests:,} requests")
    return found, stores.catalogue


def seconds_of(text: str) -> float:
    """`7d` as seconds. Raises BadRequest."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text.strip())
    if found is None or not float(found[1]):
        raise BadRequest(f"--since {text[:40]!r} is no time.", hint="Write 90s, 30m, 12h, 7d or 4w.")
    return float(found[1]) * _SECONDS[found[2]]


def _weights(file: Path | None, choice: ChoiceSettings, asked: Sequence[str], is_asked: bool) -> Weights | None:
    """The controller's, if it is to be compared. What the settings name, unasked, may be missing."""
    from planner.choice.controller import load

    path = file or choice.weights
    if PolicyName.CONTROLLER not in asked:
        return None
    if path is None:
        if is_asked:
            raise BadRequest("the controller has no weights.", hint="`fenix choice train` makes some; see --weights.")
        return None
    try:
        return load(path.expanduser())
    except ArtifactRefused as error:
        if file is None and not is_asked:
            fail(f"the controller is left out: {error.text()}")
            return None
        raise BadRequest(error.message, hint="`fenix choice train` writes such a file.") from None


def _check_writable(path: Path) -> None:
    """Before an hour is spent on what cannot be kept."""
    if path.is_dir():
        raise _unwritable(path, "it is a folder")
    if not path.parent.is_dir():
        raise _unwritable(path, "there is no such folder")
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, "the folder is not yours to write in")


def _unwritable(path: Path, why: str) -> BadRequest:
    return BadRequest(f"{path} cannot be written: {why}.", hint="Give another file with --out.")


# -------------------------------------------------------------------------------------------------------- what is shown


def _data(journaled: Journaled, found: Comparison) -> dict[str, Any]:
    """As JSON has it."""
    first, last = journaled.log[0].result.at_s, journaled.log[-1].result.at_s
    return {
        "goal": journaled.goal,
        "from_s": round(first, 3),
        "to_s": round(last, 3),
        "n": len(journaled.log),
        "n_requests": journaled.n_requests,
        "n_judged": journaled.n_judged,
        "left_out": dict(journaled.left_out),
        "n_learned_from": found.n_learned_from,
        "logged": found.table.logged.plain(),
        "policies": [_row(row) for row in found.table.rows],
        "warnings": list(found.warnings),
    }


def _row(row: Evaluation) -> dict[str, Any]:
    return {
        "policy": row.policy,
        "n": row.n,
        "doubly_robust": row.doubly_robust.plain(),
        "gain": row.gain.plain(),
        "ips": row.ips.plain(),
        "snips": row.snips.plain(),
        "replay": None if row.replay is None else row.replay.plain(),
        "n_replayed": row.n_replayed,
        "effective_n": round(row.effective_n, 1),
        "cut": row.cut,
        "unseen": row.unseen,
        "warnings": list(row.warnings),
    }


def _shown(journaled: Journaled, found: Comparison) -> Iterator[RenderableType]:
    from rich.text import Text

    n = len(journaled.log)
    left_out = "; ".join([f"{count:,} {reason}" for reason, count in journaled.left_out.items()])
    yield pairs(
        {
            "goal": journaled.goal,
            "outcomes": f"{n:,} choices for {journaled.n_requests:,} requests, {journaled.n_judged:,} of them judged",
            "from, to": f"{_at(journaled.log[0].result.at_s)}, {_at(journaled.log[-1].result.at_s)}",
            "left out": f"{left_out} (requests)" if left_out else "",
            "learned from": f"the first {found.n_learned_from:,}; evaluated on the other {n - found.n_learned_from:,}",
        }
    )
    yield ""
    rows = [("(as it was)", _said(found.table.logged), "", "", "", "")]
    for row in found.table.rows:
        rows.append(
            (
                row.policy,
                _said(row.doubly_robust),
                _said(row.gain, sign="+"),
                _said(row.ips),
                "-" if row.replay is None else _said(row.replay),
                f"{row.effective_n:,.0f}",
            )
        )
    columns = ("policy", "doubly robust", "gain", "propensity", "replay", "effective")
    yield grid(columns, rows, right=columns[1:], title="Value of a request, at most 0 (± half of the 95 % interval)")
    warnings = [*found.warnings, *[f"{row.policy}: {said}" for row in found.table.rows for said in row.warnings]]
    if warnings:
        yield ""
        yield from [Text(warning) for warning in warnings]


def _advised(told: Verdict, path: Path, others: Sequence[str]) -> Iterator[RenderableType]:
    from rich.text import Text

    yield ""
    yield Text(" ".join(told.said), style="bold")
    yield Text(f"The weights are in {path}.")
    how = f"`fenix down`, then `fenix up --set choice.policy=controller --set choice.weights={path}`"
    if told.is_better:
        yield Text(f"To switch the controller on: {how}, or the same two settings in your file.")
    else:
        yield Text(f"Nothing uses them until choice.policy is controller. If you want it all the same: {how}.")
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        yield Text(f"It would choose for all goals; of {named} it knows nothing but what is predicted.")


def _said(estimate: Estimate, sign: str = "") -> str:
    half = estimate.high - estimate.value
    return f"{estimate.value:{sign}.4f} ± {half:.4f}" if math.isfinite(half) else f"{estimate.value:{sign}.4f}"


def _at(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
