"""Is a repair nearly as good as retraining, for fewer labels and less work?

    python -m tests.benchmarks.bench_repair [--seeds 3] [--first-seed 10] [--only digits]

Streams whose concepts come and go: digits under corruptions, and the posture stream (persons that take a sensor over),
once with the persons in turns and once as it lies, where no person comes back. The same alarm (PSI of the inputs) at
the same moments for all; after it everybody sees one window of rows and may ask for labels of some. Rows are answered
before they are learned from. Of the digits, those that are scored are others than those that may be labelled.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from repair.artifacts import MemoryArtifacts
from repair.diagnosis import Ancestor
from repair.procedure import Case, RepairPlan, begin, registered, run, waits_for, winner_parameters
from repair.refine import LabelledRows, RefinePlan, one_epoch, refine
from repair.torch_model import TorchModel
from repair.vectors import Parameters
from tests.benchmarks.digits import CORRUPTIONS, corrupted

Array = npt.NDArray[Any]
DATA = Path(__file__).parents[3] / "shared" / "data" / "posture.zip"
GOAL_ACCURACY, GOAL_LABELS, GOAL_WORK = 0.98, 1.0 / 3.0, 10.0


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows (n, d) and labels (n,) in the order of time. `initial` are the lengths of the periods that everybody has
    whole before it begins, one version each; `window` rows are seen after an alarm, of which retraining labels
    `n_retrain`. Rows that are `scored` count; `open_` ones may be labelled."""

    name: str
    rows: Array
    labels: Array
    concepts: Array
    initial: tuple[int, ...]
    window: int
    n_retrain: int
    scored: Array
    open_: Array

    @property
    def n_classes(self) -> int:
        return int(self.labels.max()) + 1


def digits(seed: int) -> Stream:
    """Digits under five corruptions that come back; each phase is drawn anew."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8) / 16.0
    rng = np.random.default_rng(seed)
    to_label, to_score = np.split(rng.permutation(len(images)), [1000])
    order = ["clean", "noise"]
    for _ in range(3):
        order += [str(kind) for kind in rng.permutation(CORRUPTIONS)]
    order = [kind for i, kind in enumerate(order) if i == 0 or order[i - 1] != kind]
    rows, truths = [], []
    n, scored = 4000, np.arange(4000) % 2 == 1
    for kind in order:
        at = np.where(scored, rng.choice(to_score, n), rng.choice(to_label, n))
        rows.append(corrupted(images[at], kind, rng).reshape(n, 64))
        truths.append(labels[at])
    concepts = np.repeat([CORRUPTIONS.index(kind) for kind in order], n)
    all_scored = np.tile(scored, len(order))
    return Stream(
        "digits, corruptions come back",
        np.concatenate(rows).astype(np.float32),
        np.concatenate(truths).astype(np.int64),
        concepts,
        (n, n),
        1200,
        600,
        all_scored,
        ~all_scored,
    )


_PERSONS = (0, 28_000, 57_000, 88_500, 121_000, 164_860)  # where the next person takes the sensor over, about
_PIECES = 3


def posture(seed: int, in_turns: bool) -> Stream:
    """Movements by three coordinates. In turns: the rows of each person in three pieces, the persons one after the
    other in an order that is drawn; else as it lies."""
    rows, labels = _posture()
    concepts = np.repeat(range(len(_PERSONS) - 1), np.diff(_PERSONS))
    order, initial = np.arange(len(rows)), (8_000,)
    if in_turns:
        persons = np.random.default_rng(seed).permutation(len(_PERSONS) - 1).tolist()
        pieces = [np.array_split(np.arange(_PERSONS[p], _PERSONS[p + 1]), _PIECES) for p in persons]
        turns = [pieces[p][turn] for turn in range(_PIECES) for p in range(len(persons))]
        order, initial = np.concatenate(turns), (len(turns[0]), len(turns[1]))
    always = np.ones(len(order), dtype=bool)
    title = "posture, persons in turns" if in_turns else "posture as it lies"
    return Stream(title, rows[order], labels[order], concepts[order], initial, 3000, 1500, always, always)


def _posture() -> tuple[Array, Array]:
    with zipfile.ZipFile(DATA) as archive:
        lines = archive.read("Posture.data").decode().splitlines()
    cells = [line.rsplit(",", 1) for line in lines]
    rows = np.loadtxt(io.StringIO("\n".join(features for features, _ in cells)), delimiter=",", dtype=np.float32)
    _, labels = np.unique([label for _, label in cells], return_inverse=True)
    return rows, labels.astype(np.int64)


_BINS, _CHECK = 10, 500  # of a histogram; rows between two looks


@dataclass(frozen=True, slots=True)
class Histograms:
    """Shares of rows per decile of some first rows, feature by feature."""

    edges: Array
    shares: Array

    @classmethod
    def of(cls, rows: Array, edges: Array | None = None) -> Histograms:
        if edges is None:
            edges = np.quantile(rows, np.linspace(0.0, 1.0, _BINS + 1)[1:-1], axis=0)
        at = np.sum(rows[None] > edges[:, None], axis=0)
        counts = np.stack([np.sum(at == i, axis=0) for i in range(_BINS)])
        return cls(edges, (counts + 0.5) / (len(rows) + 0.5 * _BINS))

    def psi(self, rows: Array) -> float:
        """The mean over features of the population stability index of rows against these."""
        return self.unlike(Histograms.of(rows, self.edges))

    def unlike(self, other: Histograms) -> float:
        """The same of other histograms over the same bins."""
        live = other.shares
        return float(np.mean(np.sum((live - self.shares) * np.log(live / self.shares), axis=0)))


def alarms(stream: Stream) -> list[int]:
    """The row numbers at which everybody changes: one window after the rows became unlike those after the last change.

    The threshold is one and a half times the most that was seen among the first rows.
    """
    first, window = sum(stream.initial), stream.window
    own = stream.rows[first - stream.initial[-1] : first]
    reference = Histograms.of(own[: len(own) // 2])
    calm = [reference.psi(own[i : i + _CHECK]) for i in range(len(own) // 2, len(own) - _CHECK + 1, _CHECK // 2)]
    threshold, edges = 1.5 * max(calm), reference.edges
    found, at = [], first + _CHECK
    reference = Histograms.of(own, edges)
    while at + window < len(stream.rows):
        if reference.psi(stream.rows[at - _CHECK : at]) > threshold:
            at += window
            found.append(at)
            reference = Histograms.of(stream.rows[at - window : at], edges)
        at += _CHECK
    return found


@dataclass(slots=True)
class Ledger:
    """What a method spent."""

    n_labels: int = 0
    work_s: float = 0.0
    n_changes: int = 0


class Method(ABC):
    """Serves a stream; changes at each alarm. `parameters` are those that serve."""

    name: str

    def __init__(self, stream: Stream, model: TorchModel, first: list[Version], seed: int) -> None:
        self.stream, self.model, self.seed = stream, model, seed
        self.versions = list(first)
        self.parameters = first[-1].parameters
        self.spent = Ledger()

    @abstractmethod
    def change(self, rows: Array, labels: Array) -> None:
        """After an alarm, with the window's rows; whoever looks at a label says so in `spent`."""


@dataclass(frozen=True, slots=True)
class Version:
    """Parameters, what they were made of, and the accuracy that was seen when they were made."""

    parameters: Parameters
    histograms: Histograms
    labelled: LabelledRows
    accuracy: float


class NoRepair(Method):
    name = "no repair"

    def change(self, rows: Array, labels: Array) -> None:
        pass


class Rollback(Method):
    """To the version that was made of rows most like these."""

    name = "rollback"

    def change(self, rows: Array, labels: Array) -> None:
        now = Histograms.of(rows, self.versions[0].histograms.edges)
        self.parameters = min(self.versions, key=lambda v: v.histograms.unlike(now)).parameters


class Retrain(Method):
    """From scratch, on fresh labels alone."""

    name = "retrain at every alarm"
    keeps = False
    share = 1.0

    def change(self, rows: Array, labels: Array) -> None:
        self.spent.n_changes += 1
        rng = np.random.default_rng([self.seed, self.spent.n_changes])
        n = round(self.share * self.stream.n_retrain)
        at = rng.choice(len(rows), size=n, replace=False)
        self.spent.n_labels += n
        given = LabelledRows(rows[at], labels[at])
        if self.keeps:
            older = self.versions[-1].labelled
            rows, labels = np.concatenate([older.rows, given.rows]), np.concatenate([older.labels, given.labels])
            given = LabelledRows(rows, labels)
            self.versions.append(Version({}, self.versions[0].histograms, given, 0.0))
        self.parameters = trained(self.model, given, self.seed + self.spent.n_changes)


class FullRetrain(Retrain):
    """From scratch, on all labels that there ever were."""

    name = "full retraining"
    keeps = True

    def __init__(self, stream: Stream, model: TorchModel, first: list[Version], seed: int) -> None:
        super().__init__(stream, model, first, seed)
        older = together([version.labelled for version in first])
        self.versions = [Version({}, first[0].histograms, older, 0.0)]


class RetrainFew(Retrain):
    """From scratch, on as many labels as a repair may ask for."""

    name = "retrain, a third of the labels"
    share = GOAL_LABELS


class OneEpoch(Method):
    """One epoch over as many fresh labels as a repair may ask for."""

    name = "one-epoch fine-tune"

    def change(self, rows: Array, labels: Array) -> None:
        self.spent.n_changes += 1
        rng = np.random.default_rng([self.seed, self.spent.n_changes])
        at = rng.choice(len(rows), size=round(GOAL_LABELS * self.stream.n_retrain), replace=False)
        self.spent.n_labels += len(at)
        self.parameters = one_epoch(self.model, self.parameters, LabelledRows(rows[at], labels[at]), seed=self.seed)


class Repair(Method):
    """The procedure, with the versions that there were before as its lineage."""

    name = "repair"

    def _ancestor(self, name: str, now: Histograms) -> Ancestor:
        version = self.versions[int(name)]
        return Ancestor(name, version.histograms.unlike(now), "healthy", version.accuracy)

    def __init__(self, stream: Stream, model: TorchModel, first: list[Version], seed: int) -> None:
        super().__init__(stream, model, first, seed)
        self.serving = len(first) - 1
        self.winners: list[str] = []
        self.plan = plan_for(stream)

    def change(self, rows: Array, labels: Array) -> None:
        self.spent.n_changes += 1
        now = Histograms.of(rows, self.versions[0].histograms.edges)
        names = [str(i) for i in range(len(self.versions)) if i != self.serving]
        known: dict[int, int] = {}

        def probabilities(version: str, given: Array) -> Array:
            return self.model.probabilities(self.versions[int(version)].parameters, given)

        case = Case(
            rows=rows,
            labels=known,
            ancestors=[
                Ancestor(name, self.versions[int(name)].histograms.psi(rows), "healthy") for name in names[::-1]
            ],
            parameters=lambda version: self.versions[int(version)].parameters,
            probabilities=probabilities,
            artifacts=MemoryArtifacts(),
            model=self.model,
            own_drift=self.versions[self.serving].histograms.unlike(now),
            accuracy_before=self.versions[self.serving].accuracy,
            replay={str(i): version.labelled for i, version in enumerate(self.versions)},
        )
        state = begin(self.stream.name, str(self.serving), f"{self.seed}-{self.spent.n_changes}")
        while True:
            state = run(state, case, self.plan)
            missing = waits_for(state, case)
            if not missing:
                break
            known.update((row, int(labels[row])) for row in missing)
        self.spent.n_labels += len(known)
        winner = state.winner or "drifted"
        self.winners.append(winner)
        made = winner_parameters(state, case)
        shares = state.evidence[-1]["shares"]
        at = np.array(sorted(known), dtype=np.int64)
        if made is not None:
            version = Version(made, now, LabelledRows(rows[at], labels[at]), shares[winner]["value"])
            self.versions.append(version)
            self.serving = len(self.versions) - 1
        else:
            self.serving = int(state.ancestor or self.serving) if winner == "rollback" else self.serving
            before = self.versions[self.serving]
            labelled = together([before.labelled, LabelledRows(rows[at], labels[at])])
            self.versions[self.serving] = replace(before, labelled=labelled)
        registered(state, str(self.serving))
        self.parameters = self.versions[self.serving].parameters


def together(parts: list[LabelledRows]) -> LabelledRows:
    """All of them."""
    return LabelledRows(np.concatenate([p.rows for p in parts]), np.concatenate([p.labels for p in parts]))


def plan_for(stream: Stream) -> RepairPlan:
    """The plan by default, with a budget of a third of what retraining has."""
    budget = int(GOAL_LABELS * stream.n_retrain)
    return RepairPlan(budget=budget, n_validation=budget // 5, n_held_out=budget * 3 // 10, per_round=budget // 2)


METHODS: tuple[type[Method], ...] = (NoRepair, Rollback, OneEpoch, RetrainFew, Repair, Retrain, FullRetrain)


def network(n_features: int, n_classes: int, width: int = 64) -> nn.Module:
    """Two hidden layers with batch norm."""
    return nn.Sequential(
        nn.Linear(n_features, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )


def trained(
    model: TorchModel, given: LabelledRows, seed: int, start: Parameters | None = None, n_epochs: int = 100
) -> Parameters:
    """Adam until 10 epochs brought nothing new on a fifth of the rows."""
    torch.manual_seed(seed)
    module = copy.deepcopy(model.module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    if start is not None:
        module.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in start.items()})
    rows, labels = torch.from_numpy(given.rows), torch.from_numpy(given.labels)
    order = torch.randperm(len(rows))
    aside, used = order[: len(rows) // 5], order[len(rows) // 5 :]
    optimiser = torch.optim.Adam(module.parameters(), lr=0.003)
    best, kept, since = float("inf"), model.parameters(module), 0
    for _ in range(n_epochs):
        module.train()
        for batch in torch.split(used[torch.randperm(len(used))], max(32, len(used) // 60)):
            if len(batch) < 2:
                continue
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(rows[batch]), labels[batch]).backward()
            optimiser.step()
        module.eval()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(module(rows[aside]), labels[aside]))
        if loss < best:
            best, kept, since = loss, model.parameters(module), 0
        else:
            since += 1
            if since == 10:
                break
    return kept


def first_versions(stream: Stream, model: TorchModel, seed: int) -> list[Version]:
    """One per first period, each grown from the one before."""
    made: list[Version] = []
    end, edges = 0, None
    for k, length in enumerate(stream.initial):
        at = np.flatnonzero(stream.open_[end : end + length]) + end
        at = np.random.default_rng([seed, k]).choice(at, size=min(len(at), 2 * stream.n_retrain), replace=False)
        test, train = at[: len(at) // 5], at[len(at) // 5 :]
        given = LabelledRows(stream.rows[train], stream.labels[train])
        parameters = trained(model, given, seed, made[-1].parameters if made else None)
        right = model.logits(parameters, stream.rows[test]).argmax(axis=1) == stream.labels[test]
        histograms = Histograms.of(stream.rows[end : end + length], edges)
        edges = histograms.edges
        made.append(Version(parameters, histograms, given, float(right.mean())))
        end += length
    return made


@dataclass(slots=True)
class Run:
    """How a method did on a stream: the share right between changes, and what it spent."""

    method: Method
    right: list[float] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return float(np.average(self.right, weights=self.weights))


def served(
    stream: Stream, kinds: Sequence[type[Method]], model: TorchModel, first: list[Version], seed: int, most: int
) -> list[Run]:
    """Some methods on a stream, from the end of the first periods on. They change in turn, so that what else the
    machine does weighs on all alike."""
    runs = [Run(kind(stream, model, first, seed)) for kind in kinds]
    begin_at = sum(stream.initial)
    ends = [*alarms(stream), len(stream.rows)][: most + 1]
    for end in ends:
        at = np.flatnonzero(stream.scored[begin_at:end]) + begin_at
        seen = np.flatnonzero(stream.open_[end - stream.window : end]) + end - stream.window
        for made in runs:
            said = model.logits(made.method.parameters, stream.rows[at]).argmax(axis=1)
            made.right.append(float(np.mean(said == stream.labels[at])))
            made.weights.append(len(at))
            if end < ends[-1]:
                begun_s = time.thread_time()
                made.method.change(stream.rows[seen], stream.labels[seen])
                made.method.spent.work_s += time.thread_time() - begun_s
        begin_at = end
    return runs


def warmed(stream: Stream, model: TorchModel, first: list[Version]) -> None:
    """What is imported and compiled at the first use is nobody's work."""
    given = LabelledRows(stream.rows[:64], stream.labels[:64])
    refine(model, first[0].parameters, given, RefinePlan(n_epochs=1.0), seed=0)
    trained(model, given, 0, n_epochs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10, help="nothing was chosen on seeds from 12 on")
    parser.add_argument("--only", default="", help="streams whose name begins so")
    parser.add_argument("--methods", default="", help="those whose names begin so, with commas; retrain among them")
    parser.add_argument("--alarms", type=int, default=1000, help="the stream ends with the one after so many")
    parser.add_argument("--over-time", action="store_true", help="the accuracy between changes, of the first seed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    makers: list[Callable[[int], Stream]] = [digits]
    if DATA.exists():
        makers += [lambda seed: posture(seed, True), lambda seed: posture(seed, False)]
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    for make in makers:
        told(make, seeds, chosen.only, chosen.methods, chosen.alarms, chosen.over_time)


def told(make: Callable[[int], Stream], seeds: range, only: str, methods: str, most: int, over_time: bool) -> None:
    """The table of one stream."""
    runs: dict[str, list[Run]] = {}
    kinds = [kind for kind in METHODS if kind.name.startswith(tuple(methods.split(",")))]
    stream = make(seeds[0])
    if not stream.name.startswith(only):
        return
    for seed in seeds:
        stream = make(seed)
        model = TorchModel(network(stream.rows.shape[1], stream.n_classes))
        first = first_versions(stream, model, seed)
        warmed(stream, model, first)
        for made in served(stream, kinds, model, first, seed, most):
            runs.setdefault(made.method.name, []).append(made)
    n_alarms = [len(made.right) - 1 for made in next(iter(runs.values()))]
    print(
        f"\n{stream.name}: {len(stream.rows):,} rows, {len(seeds)} seeds, {min(n_alarms)} to {max(n_alarms)} alarms\n"
    )
    print("| method | accuracy | of retraining | labels per alarm | s per alarm | retraining takes |")
    print("|---|---|---|---|---|---|")
    retrain = runs["retrain at every alarm"]  # what the others are held against
    for name, of in runs.items():
        accuracy = statistics.mean(made.accuracy for made in of)
        ratio = statistics.mean(made.accuracy / base.accuracy for made, base in zip(of, retrain, strict=True))
        labels, work_s = _per_alarm(of, n_alarms)
        times = _per_alarm(retrain, n_alarms)[1] / work_s if work_s > 1e-3 else float("inf")
        print(f"| {name} | {accuracy:.4f} | {ratio:.2%} | {labels:.0f} | {work_s:.3f} | {times:.1f} times |")
    if over_time:
        for name, of in runs.items():
            print(f"{name:32}", " ".join(f"{share:.3f}" for share in of[0].right))
    mine = runs.get("repair")
    if mine is None:
        return
    ratio = statistics.mean(made.accuracy / base.accuracy for made, base in zip(mine, retrain, strict=True))
    labels, work_s = _per_alarm(mine, n_alarms)
    base_labels, base_s = _per_alarm(retrain, n_alarms)
    for said, kept in (
        (f"accuracy {ratio:.2%} of retraining, at least {GOAL_ACCURACY:.0%}", ratio >= GOAL_ACCURACY),
        (f"labels {labels / base_labels:.0%}, at most a third", labels / base_labels <= GOAL_LABELS + 1e-9),
        (f"work {base_s / work_s:.1f} times less, at least {GOAL_WORK:.0f}", base_s / work_s >= GOAL_WORK),
    ):
        print(f"{said}: {'kept' if kept else 'MISSED'}")
    winners = [winner for made in mine for winner in made.method.winners]  # type: ignore[attr-defined]
    print("what was used:", ", ".join(f"{name} {winners.count(name)}" for name in sorted(set(winners))))


def _per_alarm(runs: list[Run], n_alarms: list[int]) -> tuple[float, float]:
    n = sum(n_alarms)
    return sum(made.method.spent.n_labels for made in runs) / n, sum(made.method.spent.work_s for made in runs) / n


if __name__ == "__main__":
    main()
