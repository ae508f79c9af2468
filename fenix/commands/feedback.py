"""`fenix feedback` and `fenix explain`: saying what was right, and seeing what became of a request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.catalogue import percent
from fenix.commands.options import Output, SettingsFile, TimeoutS, Url, open_client
from fenix.output import Format, emit, grid, pairs
from planner.errors import BadRequest, FenixError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fenix.client import Client

_MAX_SHOWN = 12  # values of an output, and errors

TraceId = Annotated[
    str, typer.Argument(metavar="TRACE_ID", show_default=False, help="The request, by the trace id of its answer.")
]
Form = Annotated[Format, typer.Option("--format", "-o", help="Form of the data on stdout.")]


def feedback(
    trace_id: TraceId = "",
    truth: Annotated[
        str | None,
        typer.Option("--truth", metavar="VALUE", help="What is true: a number, a label, a list for several."),
    ] = None,
    rating: Annotated[float | None, typer.Option("--rating", help="How good the answer was, from 0 to 1.")] = None,
    output: Annotated[
        str, typer.Option("--output", metavar="NAME", help="Which output it is about, where there are several.")
    ] = "",
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="In whose name; that of the request.")] = "",
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Many at once, from .csv or .parquet.")
    ] = None,
    format: Form = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Say what the right answer was, or how good it was. It is durable when this returns; twice counts once."""
    if bool(trace_id) == (file is not None):
        raise BadRequest("say what it is about in one way.", hint="Give a TRACE_ID, or --file truths.csv.")
    if file is not None and (truth is not None or rating is not None or output or user):
        raise BadRequest(
            "with --file everything is in the file.",
            hint="Its columns are trace_id, output, truth, rating, about_s, user.",
        )
    if file is None and (truth is None) == (rating is None):
        raise BadRequest("say what it was like in one way.", hint="Give --truth, or --rating from 0 to 1.")
    with open_client(url, settings, timeout_s) as client:
        if file is not None:
            data = client.feedback_file(file)
        else:
            data = client.feedback(trace_id, truth=_value(truth), rating=rating, output=output, user=user)
    emit(data, format, lambda: _given(data))
    if data["refused"]:
        raise typer.Exit(1)


def explain(
    trace_id: TraceId,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Show what became of a request: the plans that were considered and why this one, its steps and their times."""
    with open_client(url, settings, timeout_s) as client:
        data = client.outcome(trace_id)
        plans = _plans_now(client, data) if output is Format.TABLE else {}
    emit(data, output, lambda: _explained(data, plans))


def _value(written: str | None) -> Any:
    """A number, true, false, a list or a quoted text as JSON has it; anything else is a text."""
    if written is None:
        return None
    try:
        value = json.loads(written)
    except ValueError:
        return written
    return written if value is None or isinstance(value, dict) else value


def _plans_now(client: Client, outcome: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the planner says today of the plans of such a request, by id: the journal has the ids alone."""
    terms = {name: value for name, value in outcome["terms"].items() if value not in (None, "", [])}
    name = outcome["goal"] or outcome["model"]
    try:
        found = client.plan(
            f"{name}@{outcome['version']}" if not outcome["goal"] and outcome["version"] else name, terms=terms
        )
    except FenixError:
        return {}
    plans = [found["chosen"], *found["others"], *(rejected["plan"] for rejected in found["rejected"])]
    return {plan["id"]: plan for plan in plans}


# ------------------------------------------------------------------------------------------------------------ tables


def _given(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield pairs(
        {name: str(data[name]) for name in ("new", "repeated", "changed", "refused") if data[name]} or {"new": "0"}
    )
    if data["errors"]:
        rows = [(str(f.get("row", "")), f["trace_id"], f["error"]) for f in data["errors"][:_MAX_SHOWN]]
        yield ""
        yield grid(("row", "request", "why not"), rows, right=("row",))
    if data["refused"] > _MAX_SHOWN:
        yield f"... and {data['refused'] - _MAX_SHOWN} more: -o json tells the first hundred."


def _explained(data: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    from rich.text import Text

    version = f" (version {data['version']})" if data["version"] else ""
    terms = {name: value for name, value in data["terms"].items() if value not in (None, "", [])}
    yield pairs(
        {
            "request": data["trace_id"],
            "answered": datetime.fromtimestamp(data["answered_s"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "asked for": f"{data['model']}{version}, {data['n_rows']} row{'s' * (data['n_rows'] != 1)}",
            "terms": ", ".join(f"{name} {_term(value)}" for name, value in terms.items()),
            "plan": Text(data["plan"], "bold green") if data["plan"] else "",
            "because": _because(data, plans),
            "took": f"{_ms(data['latency_ms'])} from arrival to answer",
            "confidence": "" if data["confidence"] is None else f"{percent(data['confidence'])} at least",
            "flags": ", ".join(data["flags"]),
            "error": data["error"],
        }
    )
    if data["steps"]:
        steps = [
            (str(s["step"]), s["extension"], _ms(s["waited_ms"]), _ms(s["ran_ms"]), _ms(s["took_ms"]), _rows(s))
            for s in data["steps"]
        ]
        yield ""
        columns = ("step", "extension", "waited", "ran", "took", "rows of the call")
        yield grid(columns, steps, right=("step", "waited", "ran", "took", "rows of the call"))
    if data["considered"]:
        considered = [_considered(data, one, plans.get(one["plan"])) for one in data["considered"]]
        yield ""
        names = ("plan", "taken with", "extensions", "right", "p50", "cost", "believed now", "")
        yield grid(names, considered, right=("taken with", "right", "p50", "cost"), title="Considered")
    if data["outputs"] or data["not_kept"]:
        yield ""
        yield grid(("output", "answer"), [*_outputs(data["outputs"]), *((n, "not kept") for n in data["not_kept"])])


def _because(data: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]) -> str:
    """Why this plan: how likely the choice was, what became of it on the way, and what the planner says of it now."""
    n, chosen = len(data["considered"]), data["chosen"]
    said = []
    if n > 1 and data["probability"] is not None:
        said.append(f"of {n} plans within the terms {chosen} was taken with probability {data['probability']:.2f}")
    elif n > 1:
        said.append(f"{chosen} was taken from {n} plans within the terms")
    elif data["plan"]:
        said.append("there was no other to choose from")
    if data["reason"]:
        said.append(data["reason"])
    if data["plan"] != chosen:
        said.append(f"{data['plan']} took over on the way")
    if reason := plans.get(data["plan"], {}).get("reason"):
        said.append(f"the planner says now: {reason}")
    return "; ".join(said)


def _considered(data: Mapping[str, Any], one: Mapping[str, Any], plan: Mapping[str, Any] | None) -> tuple[str, ...]:
    marks = [word for word, id in (("taken", data["chosen"]), ("answered", data["plan"])) if id == one["plan"]]
    if data["plan"] == data["chosen"]:
        marks = marks[:1]
    if plan is None:
        shown = one["plan"], percent(one["probability"]), "not planned now", "", "", ""
        return *shown, _believed(one["believed"]), ", ".join(marks)
    predicted = plan["prediction"]
    return (
        one["plan"],
        percent(one["probability"]),
        " → ".join(step["extension"] for step in plan["steps"]),
        percent(predicted["accuracy"]),
        _ms(predicted["p50_ms"]),
        f"{predicted['cost']:g}",
        _believed(one["believed"]),
        ", ".join(marks),
    )


def _believed(belief: Mapping[str, Any] | None) -> str:
    """What was learned of a plan, beside what is predicted of it."""
    if belief is None:
        return ""
    right = f"{percent(belief['accuracy_low'])} to {percent(belief['accuracy_high'])} right"
    return f"{right}, {percent(belief['failures'])} fail, {_ms(belief['p50_ms'])}"


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for output in outputs:
        values = output["data"]
        shown = " ".join("-" if value is None else _short(value) for value in values[:_MAX_SHOWN])
        more = f" ... ({'x'.join(map(str, output['shape']))})" if len(values) > _MAX_SHOWN else ""
        yield f"best of {output['name']}" if output["best"] else output["name"], f"{shown}{more}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _rows(step: Mapping[str, Any]) -> str:
    return str(step["batch_rows"]) if step["batch_rows"] else "cached"


def _term(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"
