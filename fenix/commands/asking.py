"""`fenix plan` and `fenix infer`: what would be done for a request, and doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.catalogue import percent
from fenix.commands.options import Output, Quiet, SettingsFile, TimeoutS, Url, assignments, open_client
from fenix.output import Format, emit, err, grid, pairs
from planner.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fenix.client import Client, Result
    from planner.features import Array

_MAX_ROWS_SHOWN = 20
_MAX_ELEMENTS_SHOWN = 8

Goal = Annotated[str, typer.Argument(metavar="GOAL", show_default=False, help="A goal, or an extension to ask alone.")]
Sentence = Annotated[
    str, typer.Option("--sentence", metavar="TEXT", help="Say in your own words what you want, instead of GOAL.")
]
Want = Annotated[
    list[str] | None, typer.Option("--want", metavar="TYPE", help="A wanted feature type, instead of GOAL; repeatable.")
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="[NAME[:DATATYPE]=]VALUE",
        help="An input: JSON, or @file (.npy, .npz, .json, .csv); repeatable.",
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="NAME=TYPE", help="With --want: the feature type of an input; repeatable."),
]
DeadlineMs = Annotated[float | None, typer.Option("--deadline-ms", help="From arrival to answer.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", help="Per row.")]
MinAccuracy = Annotated[float | None, typer.Option("--min-accuracy", help="Predicted, from 0 to 1.")]
Priority = Annotated[int | None, typer.Option("--priority", help="0 (most urgent) to 9.", show_default="5")]
User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="On whose behalf.")]
Tag = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="What the data is (pii, medical); repeatable.")
]
Purpose = Annotated[str | None, typer.Option("--purpose", metavar="TEXT", help="What for; kept in the journal.")]
Partial = Annotated[
    bool | None,
    typer.Option("--partial/--whole", help="Whether outputs that cannot be had may be left out.", show_default="whole"),
]

MinConfidence = Annotated[
    float | None, typer.Option("--min-confidence", help="Rows that are less sure get second opinions; from 0 to 1.")
]


def plan(
    goal: Goal = "",
    sentence: Sentence = "",
    want: Want = None,
    input: Input = None,
    types: Types = None,
    deadline_ms: DeadlineMs = None,
    max_cost: MaxCost = None,
    min_accuracy: MinAccuracy = None,
    priority: Priority = None,
    user: User = None,
    tag: Tag = None,
    purpose: Purpose = None,
    partial: Partial = None,
    min_confidence: MinConfidence = None,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Show how a request would be answered, and what was rejected and why. Runs nothing."""
    _exactly_one(goal, sentence, want)
    terms = _terms(deadline_ms, max_cost, min_accuracy, priority, user, tag, purpose, partial, min_confidence)
    with open_client(url, settings, timeout_s) as client:
        if sentence and input:
            goal = client.plan(sentence=sentence, terms=terms)["goal"]
        data = client.plan(
            goal,
            _inputs(client, goal, input),
            sentence="" if goal else sentence,
            wanted=want or (),
            types=assignments(types, "--type"),
            terms=terms,
        )
    emit(data, output, lambda: _explained(data))


def infer(
    goal: Goal = "",
    sentence: Sentence = "",
    want: Want = None,
    input: Input = None,
    types: Types = None,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="OUTPUT", help="Only this output; NAME.confidence is one too; repeatable."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.npz", help="Also write the outputs into a file.")
    ] = None,
    deadline_ms: DeadlineMs = None,
    max_cost: MaxCost = None,
    min_accuracy: MinAccuracy = None,
    priority: Priority = None,
    user: User = None,
    tag: Tag = None,
    purpose: Purpose = None,
    partial: Partial = None,
    min_confidence: MinConfidence = None,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
    quiet: Quiet = False,
) -> None:
    """Answer a request: by goal, by a sentence or by wanted feature types."""
    _exactly_one(goal, sentence, want)
    if not input:
        raise BadRequest("there is no input.", hint="Give --input NAME=@file.npy or --input NAME='[[1, 2]]'.")
    if save is not None and save.suffix != ".npz":
        raise BadRequest(
            f"--save {save}: outputs are written as .npz.", hint=f"Write --save {save.with_suffix('.npz')}."
        )
    terms = _terms(deadline_ms, max_cost, min_accuracy, priority, user, tag, purpose, partial, min_confidence)
    with open_client(url, settings, timeout_s) as client:
        if sentence:
            found = client.plan(sentence=sentence, terms=terms)
            goal = found["goal"]
            if not quiet:
                err().print(f"understood as {goal} (sureness {found['sureness']:.2f})", style="dim")
        arrays = _inputs(client, goal, input)
        if goal:
            result = client.infer(goal, arrays, terms=terms, outputs=select or ())
        else:
            result = client.want(
                want or (), arrays, types=assignments(types, "--type"), terms=terms, outputs=select or ()
            )
    if save is not None:
        _save(save, result.outputs)
    data = {
        "model": result.model,
        "version": result.version,
        "outputs": {name: plain(values) for name, values in result.outputs.items()},
        "confidence": result.confidence,
        "plan": result.plan,
        "trace_id": result.trace_id,
        "flags": sorted(result.flags),
        "missing": dict(result.missing),
    }
    emit(data, output, lambda: _answered(result))


def _exactly_one(goal: str, sentence: str, want: Sequence[str] | None) -> None:
    if sum(map(bool, (goal, sentence, want))) != 1:
        raise BadRequest(
            "say what you want in exactly one way.",
            hint="Give a GOAL, or --sentence, or --want; see `fenix get goals`.",
        )


def _terms(
    deadline_ms: float | None,
    max_cost: float | None,
    min_accuracy: float | None,
    priority: int | None,
    user: str | None,
    tag: list[str] | None,
    purpose: str | None,
    partial: bool | None,
    min_confidence: float | None,
) -> dict[str, Any]:
    """The terms that were given, checked before anything is sent."""
    from planner.goals import Terms

    given = {
        "deadline_ms": deadline_ms,
        "max_cost": max_cost,
        "min_accuracy": min_accuracy,
        "priority": priority,
        "user": user,
        "tags": tag or None,
        "purpose": purpose,
        "partial": partial,
        "min_confidence": min_confidence,
    }
    terms = {name: value for name, value in given.items() if value is not None}
    Terms.parse(terms)
    return terms


def _inputs(client: Client, goal: str, written: list[str] | None) -> dict[str, Array]:
    from fenix.commands.tensors import as_given, fit, read_inputs

    given = read_inputs(written or ())
    if not given:
        return {}
    if not goal:
        return as_given(given)
    return fit(given, client.model(goal)["inputs"])


def _save(path: Path, outputs: Mapping[str, Array]) -> None:
    import numpy as np

    arrays = {name: values.astype(str) if values.dtype.kind == "O" else values for name, values in outputs.items()}
    try:
        np.savez(path, allow_pickle=False, **arrays)
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror or error}.", hint="Check the path.") from None
    err().print(f"outputs written to {path}", style="dim")


def plain(values: Array) -> Any:
    """An array as JSON has it; bytes become texts."""
    import numpy as np

    if values.dtype.kind == "O":
        texts = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in values.ravel()]
        return np.array(texts, dtype=object).reshape(values.shape).tolist()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return np.where(np.isfinite(values), values.astype(object), np.array(None, dtype=object)).tolist()
    return values.tolist()


# ------------------------------------------------------------------------------------------------------------ tables


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _explained(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    chosen = data["chosen"]
    predicted = chosen["prediction"]
    understood = f" (understood from the sentence, sureness {data['sureness']:.2f})" if data["sureness"] < 1 else ""
    yield pairs(
        {
            "goal": f"{data['goal']}{understood}" if data["goal"] else "",
            "plan": Text.assemble((chosen["id"], "bold green"), f" ({chosen['kind']})"),
            "predicts": f"{percent(predicted['accuracy'])} right, {_ms(predicted['p50_ms'])} (p99"
            f" {_ms(predicted['p99_ms'])}), cost {predicted['cost']:g} a row",
            "because": chosen["reason"],
            "planned": f"in {_ms(data['elapsed_ms'])}, {data['expanded']} states, catalogue epoch {data['epoch']}"
            + ("" if data["complete"] else "; the search budget ended first, better plans may exist"),
        }
    )
    yield ""
    yield grid(("step", "extension", "takes", "only where", "p50", "else"), list(_steps(chosen)), right=("step", "p50"))
    gives = "; ".join(f"{b['port']} ← {_sources(b)}" for b in chosen["outputs"])
    yield Text.assemble("\n", ("answer ", "bold"), gives)
    columns = ("plan", "kind", "extensions", "right", "p50", "cost")
    right = ("right", "p50", "cost")
    if data["others"]:
        yield ""
        yield grid(
            columns, [_row(other) for other in data["others"]], right=right, title="Within the terms, but second"
        )
    if data["rejected"]:
        yield ""
        rows = [(*_row(rejected["plan"]), rejected["reason"]) for rejected in data["rejected"]]
        yield grid((*columns, "why not"), rows, right=right, title="Rejected")


def _steps(plan: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for step in plan["steps"]:
        guard = step["guard"]
        yield (
            str(step["id"]),
            step["extension"],
            "\n".join(f"{b['port']} ← {_sources(b)}" for b in step["inputs"]),
            f"step {guard['step']} is less than {percent(guard['below'])} sure" if guard else "",
            _ms(step["p50_ms"]),
            ", ".join(step["fallbacks"]),
        )


def _sources(binding: Mapping[str, Any]) -> str:
    """The last source that has a row gives it, so that one comes first here."""
    named = [
        f"your {source['port']}" if source["step"] < 0 else f"{source['port']} of step {source['step']}"
        for source in reversed(binding["sources"])
    ]
    return ", else ".join(named)


def _row(plan: Mapping[str, Any]) -> tuple[str, ...]:
    predicted = plan["prediction"]
    return (
        plan["id"],
        plan["kind"],
        " → ".join(step["extension"] for step in plan["steps"]),
        percent(predicted["accuracy"]),
        _ms(predicted["p50_ms"]),
        f"{predicted['cost']:g}",
    )


def _answered(result: Result) -> Iterator[RenderableType]:
    names = list(result.outputs)
    n_rows = max((len(values) for values in result.outputs.values()), default=0)
    rows = [
        (str(row), *(_cell(values[row]) for values in result.outputs.values()))
        for row in range(min(n_rows, _MAX_ROWS_SHOWN))
    ]
    yield grid(("row", *names), rows, right=("row",))
    if n_rows > _MAX_ROWS_SHOWN:
        yield f"... and {n_rows - _MAX_ROWS_SHOWN} more rows: -o json has them all, --save FILE.npz keeps them."
    yield ""
    yield pairs(
        {
            "answered by": f"{result.model} (version {result.version})" if result.model else "",
            "confidence": "" if result.confidence is None else f"{percent(result.confidence)} at least",
            "plan": result.plan,
            "trace": result.trace_id,
            "flags": ", ".join(sorted(result.flags)),
            "missing": "\n".join(f"{name}: {reason}" for name, reason in result.missing.items()),
        }
    )
    if result.steps:
        times = [
            (str(s["step"]), s["extension"], str(s["n_rows"]), _ms(s["waited_ms"]), _ms(s["ran_ms"]), _remarks(s))
            for s in result.steps
        ]
        yield ""
        yield grid(
            ("step", "extension", "rows", "waited", "ran", "note"), times, right=("step", "rows", "waited", "ran")
        )


def _remarks(step: Mapping[str, Any]) -> str:
    return "; ".join([flag for flag in ("cached", "hedged") if step[flag]] + [step["note"]] * bool(step["note"]))


def _cell(value: Any) -> str:
    """One row of an output, shortened."""
    import numpy as np

    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, np.ndarray):
        return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
    flat = value.ravel()
    shown = " ".join(_cell(element) for element in flat[:_MAX_ELEMENTS_SHOWN])
    shape = "x".join(map(str, value.shape))
    return shown if len(flat) <= _MAX_ELEMENTS_SHOWN else f"{shown} ... ({shape})"
