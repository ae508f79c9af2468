"""What the demo shows of a running cluster, chapter by chapter; everything in it comes over HTTP from the gateway."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from fenix.client import AsyncClient, Client, Result
from fenix.demo import show
from fenix.demo.goals import READ_DIGIT, READ_SCAN, Task
from fenix.demo.training import Report
from fenix.output import explain, grid
from planner.errors import NoPlan, Unsure
from planner.features import Array

CONNECTIONS = 8
WIDE = 118  # characters: room for all that is known of an extension
MOST_TRIED = 30  # held-out rows, until one takes every step of the plan

# The models that answer a goal alone, each with the steps it needs. Scores count as the digit that they speak for.
SINGLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "read-digit": {
        "digit-network": ("normalise", "digit-network"),
        "digit-trees": ("normalise", "digit-trees"),
        "digit-strokes": ("normalise", "stroke-features", "digit-strokes"),
        "glance-digit": ("normalise", "glance-digit"),
    },
    "identify-wine": {name: (name,) for name in ("wine-linear", "wine-forest", "wine-discriminant")},
    "screen-tumour": {name: (name,) for name in ("tumour-linear", "tumour-forest")},
}
REQUESTS = (
    ("read-digit", "Read the handwritten digit in this picture, please."),
    ("tell-parity", "Is the number in this image even or odd?"),
    ("read-scan", "What is written on this sheet of paper?"),
    ("screen-tumour", "Does this biopsy look malignant or benign?"),
)
FORMS = ("scan", "image", "pixels", "strokes", "scores", "table", "label")  # of types of features, in order
TERMS: Sequence[Mapping[str, float]] = ({}, {"max_cost": 0.02}, {"max_cost": 0.005}, {"min_accuracy": 0.9999})
SENTENCES = (
    "Which digit does the image show?",
    "Read this pile of scanned sheets as cheaply as possible.",
    "Tell me the parity of this digit.",
    "From which grape was this wine made?",
    "Is this cancer?",
    "Translate this letter into French.",
)


@dataclass(frozen=True, slots=True)
class Score:
    """How a goal did on its held-out rows, each of them a request: which were `right` (n,), how long each took (n,),
    the id of the plan that answered it, and how many rows reached each step, by plan and step.

    Some requests try another plan than the best: that is how the cluster learns.
    """

    right: Array
    took_ms: Array
    plans: tuple[str, ...]
    n_rows: Mapping[tuple[str, int], int]

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def of(self, plan: str) -> tuple[int, int]:
        """How many requests a plan answered, and how many of them rightly."""
        took = np.array([answered == plan for answered in self.plans])
        return int(took.sum()), int(self.right[took].sum())


@dataclass(frozen=True, slots=True)
class Storyteller:
    """Tells about the cluster at `client`. `tasks` are its goals by name; `doing` hears what goes on."""

    client: Client
    console: Console
    doing: Report
    tasks: Mapping[str, Task]
    scores: dict[str, Score] = field(default_factory=dict)  # of what has been measured already

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(Text(text, style="bold"), align="left")

    def line(self, label: str, text: str, style: str = "") -> None:
        """A labelled line, cut where the terminal ends."""
        said = Text.assemble((f"{label:10}", "bold"), text, style=style)
        self.console.print(said, no_wrap=True, overflow="ellipsis")

    def network(self) -> None:
        """What was deployed, and what is known of it."""
        self.title("The network: each extension a deployment of its own, measured before it got any traffic")
        rows = []
        for card in sorted(self.client.extensions(), key=_place):
            right, profile = card["accuracy"], card["profile"]
            rows.append(
                {
                    "extension": card["name"],
                    "kind": card["kind"],
                    "takes": "scores/digit/*" if len(card["inputs"]) > 1 else card["inputs"][0]["type"],
                    "gives": card["outputs"][0]["type"],
                    "µs/row": show.micros(card["cost"]),
                    "ms/call": f"{profile['fixed_ms'] + profile['per_row_ms']:.1f}",
                    "right, 95 % interval": f"{right['mean']:6.1%}, {right['low']:.1%}-{right['high']:.1%}"
                    if right["n_rows"]
                    else "",
                }
            )
        left_out = {"kind", "ms/call"} if self.console.width < WIDE else set()
        columns = [column for column in rows[0] if column not in left_out]
        numbers = ("µs/row", "ms/call")
        self.console.print(grid(columns, [[row[column] for column in columns] for row in rows], right=numbers))
        self.console.print("µs/row: processor time in batches of 64. ms/call: one row, seen from the gateway.")

    def requests(self) -> None:
        """A few held-out rows: what was asked, the plan and why, what lost, the answer and the time of each step."""
        self.title("Requests: the plan, why it won, the answer")
        for goal, sentence in REQUESTS:
            self._request(self.tasks[goal], sentence)

    def _request(self, task: Task, sentence: str) -> None:
        part, output = task.split.held_out, task.goal.outputs[0].name
        explanation = self.client.plan(sentence=sentence, inputs=_row(task, 0))
        chosen = explanation["chosen"]
        row = self._telling_row(task, sentence, chosen)
        inputs = _row(task, row)
        answer, took_ms = self._answer(sentence, inputs, chosen["id"])
        self.console.print(f"\n[bold]“{sentence}”[/bold] → goal [bold]{explanation['goal']}[/bold]")
        table = show.plan_table(chosen, answer.steps)
        (image,) = inputs.values()
        self.console.print(Columns([show.picture(image[0]), table], padding=(0, 3)) if image.ndim == 3 else table)
        self.line("promises", show.prediction(chosen))
        self.line("why", _why(chosen))
        for loser in show.losers(explanation):
            self.line("not taken", loser, style="dim")
        sure = "" if answer.confidence is None else f"{answer.confidence:.0%} sure, "
        found = f"{explanation['sureness']:.0%} sure of the goal, planned in {explanation['elapsed_ms']:.1f} ms"
        given, truth = answer[output][0], task.truth(part)[output][row]
        self.line("answer", f"{output} {given}, {sure}truth {truth}; {took_ms:.1f} ms over HTTP; {found}")

    def _answer(self, sentence: str, inputs: Mapping[str, Array], plan: str) -> tuple[Result, float]:
        """The answer by this plan, and the milliseconds it took; asked again where another plan was tried instead."""
        for _ in range(MOST_TRIED):
            started_s = time.perf_counter()
            answer = self.client.ask(sentence, inputs)
            took_ms = (time.perf_counter() - started_s) * 1e3
            if answer.plan == plan:
                break
        return answer, took_ms

    def _telling_row(self, task: Task, sentence: str, plan: Mapping[str, Any]) -> int:
        """The first held-out row that needs every step of its plan; the first of all when none of the first does.

        Asking also opens the connections between gateway and replicas, whose time is no step's fault.
        """
        for row in range(MOST_TRIED):
            answer = self.client.ask(sentence, _row(task, row))
            if answer.plan == plan["id"] and len(answer.steps) == len(plan["steps"]):
                return row
        return 0

    def terms(self) -> None:
        """One image under different terms: the terms decide the plan."""
        self.title("Terms: the same digit, other conditions, another plan")
        inputs = _row(self.tasks[READ_DIGIT.name], 0)
        for terms in TERMS:
            said = ", ".join(f"{name} {value}" for name, value in terms.items()) or "the goal's own"
            try:
                chosen = self.client.plan(READ_DIGIT.name, inputs, terms=terms)["chosen"]
                self._term(said, show.prediction(chosen), show.chain(chosen))
            except NoPlan as error:
                self._term(said, "refused", error.message.partition(" (")[0])

    def _term(self, said: str, outcome: str, detail: str) -> None:
        self.console.print(Text.assemble((f"{said:20}", "bold"), outcome), no_wrap=True, overflow="ellipsis")
        self.console.print(Text(f"    {detail}", style="dim"), no_wrap=True, overflow="ellipsis")

    def sentences(self) -> None:
        """Sentences that reach each goal, and one that is asked back."""
        self.title("Sentences: said in other words")
        rows, asked_back = [], ""
        for sentence in SENTENCES:
            try:
                found = self.client.plan(sentence=sentence)
                rows.append((sentence, found["goal"], f"{found['sureness']:.0%}"))
            except Unsure as error:
                rows.append((sentence, "asked back", ""))
                asked_back = explain(error)
        self.console.print(grid(("sentence", "goal", "sure"), rows, right=("sure",)))
        self.console.print(Text(f"asked back: {asked_back}", style="dim"))

    def cascade(self, url: str) -> None:
        """The plan of `read-scan` beside its two parts alone, each as a whole plan, on all held-out rows."""
        self.title("A cascade: the cheap model first, the dear one where it is unsure")
        task = self.tasks[READ_SCAN.name]
        part = task.split.held_out
        plan = self.client.plan(READ_SCAN.name, _row(task, 0))["chosen"]
        self.line("plan", show.chain(plan))
        self.line("promises", show.prediction(plan))
        self.line("why", _why(plan))
        ends = [source["step"] for source in plan["outputs"][0]["sources"]]
        if len(ends) != 2:
            self.console.print("No cascade pays on this machine: its parts cost or err too little to differ.")
            return
        costs = {card["id"]: card["cost"] for card in self.client.extensions()}
        steps = {step["id"]: step for step in plan["steps"]}
        branches = [needed_for(end, steps) for end in ends]
        rows = []
        for branch, other, end in zip(branches, branches[::-1], ends, strict=True):
            name = " → ".join(show.name_of(step["extension"]) for step in branch if step not in other)
            accuracy = float((self._run(branch, task)[end] == part.y).mean())
            rows.append((name, accuracy, sum(costs[step["extension"]] for step in branch)))
        score = self.scores[READ_SCAN.name] = asyncio.run(self._measure(url, task))
        n_taken, n_right = score.of(plan["id"])
        if not n_taken:
            self.console.print("No request took the cascade: what it knows now lets another plan win.")
            return
        cost = sum(costs[step["extension"]] * score.n_rows.get((plan["id"], id_), 0) for id_, step in steps.items())
        cost, accuracy = cost / n_taken, n_right / n_taken
        (cheap, *of_cheap), (dear, *of_dear), whole = *rows, ("the cascade", accuracy, cost)
        numbers = ("right", "µs of CPU a row", "right answers per CPU second")
        lines = [
            (who, f"{a:.2%}", f"{c * 1e3:.1f}", f"{worth(a, c):,.0f}")
            for who, a, c in ((f"{cheap} alone", *of_cheap), (f"{dear} alone", *of_dear), whole)
        ]
        self.console.print(grid((f"on {len(part)} held-out scans", *numbers), lines, right=numbers))
        over = [f"{worth(accuracy, cost) / worth(*of) - 1:+.1%}" for of in (of_cheap, of_dear)]
        if n_taken < len(part):
            self.console.print(f"{n_taken} requests took the cascade; the others tried how other plans do.")
        unsure = score.n_rows.get((plan["id"], ends[1]), 0) / n_taken
        self.console.print(
            f"Accuracy per cost: {over[0]} over {cheap}, {over[1]} over {dear}. Finding the digit costs most, whoever "
            f"reads it; and only the {unsure:.0%} that {cheap} is unsure of pay more."
        )

    def totals(self, url: str) -> bool:
        """Accuracy and latency of every goal over its held-out rows, beside each single model.

        Returns whether `read-digit` did at least as well as its best single model.
        """
        self.title(f"All held-out rows, one request each, {CONNECTIONS} at a time")
        rows, holds = [], False
        for name, task in self.tasks.items():
            score = self.scores.get(name) or asyncio.run(self._measure(url, task))
            latency = [f"{ms:.1f}" for ms in np.percentile(score.took_ms, [50, 99])]
            singles = {single: self._single(task, chain) for single, chain in SINGLES.get(name, {}).items()}
            best = max(singles, key=lambda single: singles[single], default="")
            alone = f"{singles[best]:.2%} {best}" if best else ""
            rows.append((name, f"{len(task.split.held_out)}", f"{score.accuracy:.2%}", *latency, alone))
            if name == READ_DIGIT.name:
                holds = score.accuracy >= max(singles.values())
        numbers = ("rows", "right", "p50 ms", "p99 ms")
        self.console.print(grid(("goal", *numbers, "the best model alone"), rows, right=numbers))
        return holds

    async def _measure(self, url: str, task: Task) -> Score:
        """Every held-out row as a request of its own, over a few connections at once."""
        part, output = task.split.held_out, task.goal.outputs[0].name
        right, took_ms, plans = np.zeros(len(part), dtype=bool), np.zeros(len(part)), [""] * len(part)
        n_rows: Counter[tuple[str, int]] = Counter()
        waiting = iter(range(len(part)))

        async def work(client: AsyncClient) -> None:
            for row in waiting:
                started_s = time.perf_counter()
                answer: Result = await client.ask(task.goal.examples[0], _row(task, row))
                took_ms[row] = (time.perf_counter() - started_s) * 1e3
                right[row], plans[row] = answer[output][0] == part.y[row], answer.plan
                for times in answer.steps:
                    n_rows[answer.plan, times["step"]] += times["n_rows"]
                self.doing(f"{task.goal.name}: {row + 1} of {len(part)} requests")

        async with AsyncClient(url) as client:
            await asyncio.gather(*(work(client) for _ in range(CONNECTIONS)))
        return Score(right, took_ms, tuple(plans), n_rows)

    def _single(self, task: Task, extensions: Sequence[str]) -> float:
        """The held-out accuracy of a chain of extensions, each asked by its own name."""
        part = task.split.held_out
        rows: Array = part.x
        for extension in extensions:
            (rows,) = self.client.infer(extension, rows).outputs.values()
        return float((labels_of(rows) == part.y).mean())

    def _run(self, branch: Sequence[show.Step], task: Task) -> dict[int, Array]:
        """Runs steps of a plan one by one, each extension asked by its own name; the first output by step."""
        made = {-1: task.inputs(task.split.held_out)}
        for step in branch:
            inputs = {b["port"]: made[b["sources"][0]["step"]][b["sources"][0]["port"]] for b in step["inputs"]}
            made[step["id"]] = dict(self.client.infer(step["extension"], inputs).outputs)
        return {id_: next(iter(outputs.values())) for id_, outputs in made.items()}


def _row(task: Task, row: int) -> dict[str, Array]:
    """One held-out row by input port."""
    return {name: values[row : row + 1] for name, values in task.inputs(task.split.held_out).items()}


def _place(card: Mapping[str, Any]) -> tuple[str, int]:
    """Where an extension stands: by domain, and there from what is raw to what is known."""
    form, domain = card["inputs"][0]["type"].split("/")[:2]
    return domain, FORMS.index(form)


def _why(plan: Mapping[str, Any]) -> str:
    """Why a plan won, without the figures that it promises."""
    return str(plan["reason"]).partition(": ")[2]


def needed_for(end: int, steps: Mapping[int, show.Step]) -> list[show.Step]:
    """The steps whose results lead to step `end`, itself included, in the plan's order and without guards."""
    needed, open_ = set(), [end]
    while open_:
        id_ = open_.pop()
        if id_ != -1 and id_ not in needed:
            needed.add(id_)
            open_ += show.sources_of(steps[id_])
    return [{**step, "guard": None} for id_, step in steps.items() if id_ in needed]


def labels_of(made: Array) -> Array:
    """Labels (n,) as they are, or of scores (n, n_classes) the likeliest."""
    return made if made.ndim == 1 else made.argmax(axis=1)


def worth(accuracy: float, cost_ms: float) -> float:
    """Accuracy per cost: right answers per CPU second, for a row that costs `cost_ms`."""
    return 1e3 * accuracy / cost_ms
