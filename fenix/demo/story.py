"""What the demo shows of a running cluster, in five chapters; everything in it comes over HTTP from the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from fenix.client import AsyncClient, Client
from fenix.demo import show
from fenix.demo.goals import Task
from fenix.demo.training import Report
from fenix.output import explain, grid
from planner.errors import NoPlan, Unsure
from planner.features import Array
from planner.goals import Objective

CONNECTIONS = 4
CHUNK_ROWS = 64  # so small that the client asks over /v1, which tells of each step
SILENCE_S = 1.5

# The models that answer a goal alone, each with the steps it needs.
SINGLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "read-digit": {
        "digit-network": ("normalise", "digit-network", "read-network"),
        "digit-trees": ("normalise", "digit-trees", "read-trees"),
        "digit-strokes": ("normalise", "stroke-features", "digit-strokes", "read-strokes"),
        "quick-digit": ("normalise", "quick-digit"),
    },
    "identify-wine": {name: (name,) for name in ("wine-linear", "wine-forest", "wine-discriminant")},
    "screen-tumour": {name: (name,) for name in ("tumour-linear", "tumour-forest")},
}
# Goal, sentence, held-out row.
REQUESTS = (
    ("read-digit", "Read the handwritten digit in this picture, please.", 0),
    ("read-digit", "What number has been written here?", 1),
    ("tell-parity", "Is the number in this image even or odd?", 2),
    ("screen-tumour", "Does this biopsy look malignant or benign?", 0),
)
SENTENCES = (
    "Which digit does the image show?",
    "Sort this pile of scanned digits as cheaply as possible.",
    "Tell me the parity of this digit.",
    "From which grape was this wine made?",
    "Is this cancer?",
    "Translate this letter into French.",
)


@dataclass(frozen=True, slots=True)
class Score:
    """How a goal did on its held-out rows, each of them a request."""

    accuracy: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Storyteller:
    """Tells about the cluster at `client`. `tasks` are its goals by name, `costs` per row by extension name."""

    client: Client
    console: Console
    report: Report
    tasks: Mapping[str, Task]
    costs: Mapping[str, float]

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(Text(text, style="bold"), align="left")

    def requests(self) -> None:
        """A few held-out rows: what was asked, the plan and why, what lost, the answer and the time of each step."""
        self.title("Requests: the plan, why it won, the answer")
        for goal, sentence, row in REQUESTS:
            self._request(self.tasks[goal], sentence, row)

    def _request(self, task: Task, sentence: str, row: int) -> None:
        part = task.split.held_out
        inputs = {name: values[row : row + 1] for name, values in task.inputs(part).items()}
        explanation = self.client.plan(sentence=sentence, inputs=inputs)
        self.client.ask(sentence, inputs)  # the first request opens connections, which is no step's fault
        started_s = time.perf_counter()
        answer = self.client.ask(sentence, inputs)
        took_ms = (time.perf_counter() - started_s) * 1e3
        chosen, output = explanation["chosen"], task.goal.outputs[0].name
        sureness = f"(sureness {explanation['sureness']:.2f}, {explanation['elapsed_ms']:.1f} ms of planning)"
        self.console.print(f"\n[bold]“{sentence}”[/bold] → goal [bold]{explanation['goal']}[/bold] {sureness}")
        table = show.plan_table(chosen, answer.steps)
        image = inputs.get("image")
        self.console.print(table if image is None else Columns([show.digit_picture(image[0]), table], padding=(0, 3)))
        self.console.print(f"promises  {show.prediction(chosen)}")
        self.console.print(Text(f"why       {chosen['reason']}"))
        for line in show.losers(explanation):
            self.console.print(Text(f"not taken {line}", style="dim"))
        given, truth = answer[output][0], task.truth(part)[output][row]
        sure = "" if answer.confidence is None else f", confidence {answer.confidence:.0%}"
        over_http = f"{took_ms:.1f} ms over HTTP"
        self.console.print(f"answer    {output} = [bold]{given}[/bold]{sure}, truth {truth}, {over_http}")

    def terms(self) -> None:
        """One image under different terms: the terms decide the plan."""
        self.title("Terms: the same digit, other conditions, another plan")
        task = self.tasks["read-digit"]
        inputs = {name: values[:1] for name, values in task.inputs(task.split.held_out).items()}
        rows = []
        for said, terms in (
            ("none but the goal's own", {}),
            ("max_cost 0.05", {"max_cost": 0.05}),
            ("max_cost 0.01", {"max_cost": 0.01}),
            ("min_accuracy 0.9999", {"min_accuracy": 0.9999}),
        ):
            try:
                chosen = self.client.plan("read-digit", inputs, terms=terms)["chosen"]
                rows.append((said, f"{show.chain(chosen)}: {show.prediction(chosen)}"))
            except NoPlan as error:
                rows.append((said, f"refused: {explain(error)}"))
        self.console.print(grid(("terms", "plan"), rows))

    def sentences(self) -> None:
        """Sentences that reach each goal, and one that is asked back."""
        self.title("Sentences: said in other words")
        rows = []
        for sentence in SENTENCES:
            try:
                found = self.client.plan(sentence=sentence)
                rows.append((sentence, f"{found['goal']} (sureness {found['sureness']:.2f})"))
            except Unsure as error:
                rows.append((sentence, f"asked back: {explain(error)}"))
        self.console.print(grid(("sentence", "goal"), rows))

    def cascade(self) -> None:
        """The plan of `skim-digits` beside its two parts alone, each as a whole plan, on all held-out rows."""
        self.title("A cascade: the cheap model first, the dear one where it is unsure")
        task = self.tasks["skim-digits"]
        part, output = task.split.held_out, task.goal.outputs[0].name
        explanation = self.client.plan("skim-digits", task.inputs(part))
        plan = explanation["chosen"]
        self.console.print(Text(f"plan      {show.chain(plan)}\nwhy       {plan['reason']}"))
        ends = [source["step"] for source in plan["outputs"][0]["sources"]]
        if len(ends) == 1:
            self.console.print("No cascade pays today: its parts cost or err too little to differ.")
            return
        steps = {step["id"]: step for step in plan["steps"]}
        rows = []
        for place, end in zip(("cheap part alone", "dear part alone"), (ends[0], ends[-1]), strict=True):
            branch = needed_for(end, steps)
            accuracy = float((self._run(branch, task)[end] == part.y).mean())
            cost = sum(self.costs[show.name_of(step["extension"])] for step in branch)
            rows.append((f"{place}: {show.chain({'steps': branch})}", accuracy, cost, 1.0))
        n_right, cost, n_passed_on = 0, 0.0, 0
        for start in range(0, len(part), CHUNK_ROWS):
            chunk = {name: values[start : start + CHUNK_ROWS] for name, values in task.inputs(part).items()}
            answer = self.client.ask(task.goal.examples[0], chunk)
            n_right += int((answer[output] == part.y[start : start + CHUNK_ROWS]).sum())
            cost += sum(self.costs[show.name_of(t["extension"])] * t["n_rows"] for t in answer.steps) / len(part)
            n_passed_on += sum(t["n_rows"] for t in answer.steps if t["step"] == ends[-1])
        rows.append(("the cascade", n_right / len(part), cost, n_passed_on / len(part)))
        price = price_of_error(task.goal.objective)
        numbers = ("right", "µs of CPU a row", "passed on", "right answers per CPU second")
        self.console.print(
            grid(
                ("plan", *numbers),
                [
                    (
                        who,
                        f"{accuracy:.2%}",
                        f"{cost * 1e3:.1f}",
                        "" if share == 1.0 else f"{share:.0%}",
                        f"{worth(accuracy, cost, price):,.0f}",
                    )
                    for who, accuracy, cost, share in rows
                ],
                right=numbers,
            )
        )
        self.console.print(f"A wrong answer is charged at {price:g} ms of CPU: the goal's objective says so.")

    def totals(self, url: str) -> bool:
        """Accuracy and latency of every goal over its held-out rows, beside each single model.

        Returns whether `read-digit` did at least as well as its best single model.
        """
        self.title("All held-out rows, one request each")
        rows, holds = [], False
        for name, task in self.tasks.items():
            score = asyncio.run(self._measure(url, task))
            latency = (f"{score.p50_ms:.1f}", f"{score.p99_ms:.1f}")
            rows.append((name, f"{len(task.split.held_out)}", f"{score.accuracy:.2%}", *latency))
            singles = {single: self._single(task, chain) for single, chain in SINGLES.get(name, {}).items()}
            rows += [(f"    {single} alone", "", f"{accuracy:.2%}", "", "") for single, accuracy in singles.items()]
            if name == "read-digit":
                holds = score.accuracy >= max(singles.values())
        columns = ("goal", "rows", "right", "p50 ms", "p99 ms")
        self.console.print(grid(columns, rows, right=columns[1:]))
        return holds

    async def _measure(self, url: str, task: Task) -> Score:
        """Every held-out row as a request of its own, over a few connections at once."""
        part = task.split.held_out
        inputs, output = task.inputs(part), task.goal.outputs[0].name
        right, took_ms = np.zeros(len(part), dtype=bool), np.zeros(len(part))
        waiting = iter(range(len(part)))
        told_s = time.perf_counter()

        async def work(client: AsyncClient) -> None:
            nonlocal told_s
            for row in waiting:
                started_s = time.perf_counter()
                answer = await client.infer(task.goal.name, {name: v[row : row + 1] for name, v in inputs.items()})
                took_ms[row] = (time.perf_counter() - started_s) * 1e3
                right[row] = answer[output][0] == part.y[row]
                if time.perf_counter() - told_s > SILENCE_S:
                    told_s = time.perf_counter()
                    self.report(f"{task.goal.name}: {row + 1} of {len(part)} requests")

        async with AsyncClient(url) as client:
            await asyncio.gather(*(work(client) for _ in range(CONNECTIONS)))
        self.report(f"{task.goal.name}: all {len(part)} requests answered")
        p50_ms, p99_ms = np.percentile(took_ms, [50, 99])
        return Score(float(right.mean()), float(p50_ms), float(p99_ms))

    def _single(self, task: Task, extensions: Sequence[str]) -> float:
        """The held-out accuracy of a chain of extensions, each asked by its own name."""
        part = task.split.held_out
        rows: Array = part.x
        for extension in extensions:
            (rows,) = self.client.infer(extension, rows).outputs.values()
        return float((rows == part.y).mean())

    def _run(self, branch: Sequence[show.Step], task: Task) -> dict[int, Array]:
        """Runs steps of a plan one by one, each extension asked by its own name; the first output by step."""
        made = {-1: task.inputs(task.split.held_out)}
        for step in branch:
            inputs = {b["port"]: made[b["sources"][0]["step"]][b["sources"][0]["port"]] for b in step["inputs"]}
            made[step["id"]] = dict(self.client.infer(step["extension"], inputs).outputs)
        return {id_: next(iter(outputs.values())) for id_, outputs in made.items()}


def needed_for(end: int, steps: Mapping[int, show.Step]) -> list[show.Step]:
    """The steps whose results lead to step `end`, itself included, in the plan's order and without guards."""
    needed, open_ = set(), [end]
    while open_:
        id_ = open_.pop()
        if id_ != -1 and id_ not in needed:
            needed.add(id_)
            open_ += [source["step"] for binding in steps[id_]["inputs"] for source in binding["sources"]]
    return [{**step, "guard": None} for id_, step in steps.items() if id_ in needed]


def price_of_error(objective: Objective) -> float:
    """What a wrong answer costs, in units of cost, by the goal's own objective (for accuracies near 1)."""
    return objective.accuracy / objective.cost


def worth(accuracy: float, cost: float, price: float) -> float:
    """Right answers per CPU second, where a row costs `cost` ms and a wrong answer `price` ms more.

    Without that price, the cheapest model would always win: a coin costs nothing and is right half of the time.
    """
    return 1e3 * accuracy / (cost + price * (1.0 - accuracy))
