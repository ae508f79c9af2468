"""What clients of the demo can ask for, and what each answer is worth.

Costs are CPU milliseconds per row. An objective turns a wrong answer into the same unit: `accuracy / cost` is what
one costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fenix.demo import data, digits, scans, tables
from fenix.demo.data import SEED, Part, Split
from planner.features import Array, Port
from planner.goals import Goal, Objective, Terms

ACCURACY_ALONE = Objective(accuracy=1.0, latency=0.0, cost=0.0)

READ_DIGIT = Goal(
    name="read-digit",
    inputs=(Port("image", digits.IMAGE),),
    outputs=(Port("digit", digits.DIGIT),),
    description="Read the handwritten digit in an image as accurately as possible.",
    examples=("which digit is this", "what number has been written here", "recognise a scanned digit"),
    terms=Terms(deadline_ms=5_000.0),
    objective=ACCURACY_ALONE,
)
READ_SCAN = Goal(
    name="read-scan",
    inputs=(Port("scan", scans.SCAN),),
    outputs=(Port("digit", digits.DIGIT),),
    description="Read piles of scanned sheets, a digit on each, for the most right answers at the lowest cost.",
    examples=("read a pile of scanned sheets cheaply", "scan in bulk", "what is written on this sheet of paper"),
    terms=Terms(deadline_ms=10_000.0),
    # A wrong answer is charged as much as one more reading, about 0.13 CPU milliseconds. With that price the best
    # plan is the one with the most right answers per millisecond. Source: Dinkelbach 1967, Management Science 13.
    objective=Objective(accuracy=0.13, latency=0.0, cost=1.0),
)
TELL_PARITY = Goal(
    name="tell-parity",
    inputs=READ_DIGIT.inputs,
    outputs=(Port("parity", digits.PARITY),),
    description="Tell whether the handwritten digit in an image is even or odd.",
    examples=("is this number even or odd", "parity of the digit in the picture"),
    terms=Terms(deadline_ms=5_000.0),
    objective=ACCURACY_ALONE,
)
IDENTIFY_WINE = Goal(
    name="identify-wine",
    inputs=(Port("analysis", tables.ANALYSIS),),
    outputs=(Port("cultivar", tables.CULTIVAR),),
    description="Identify the cultivar of a wine from its chemical analysis.",
    examples=("which grape is this wine made from", "classify a wine by alcohol, acid and colour"),
    objective=Objective(accuracy=10.0, latency=1.0, cost=0.1),
)
SCREEN_TUMOUR = Goal(
    name="screen-tumour",
    inputs=(Port("nuclei", tables.NUCLEI),),
    outputs=(Port("tumour", tables.TUMOUR),),
    description="Tell a malignant breast tumour (0) from a benign one (1) by measurements of cell nuclei.",
    examples=("is this tumour malignant", "screen a biopsy for breast cancer"),
    terms=Terms(tags=frozenset({"medical"})),
    objective=ACCURACY_ALONE,
)


@dataclass(frozen=True, slots=True)
class Task:
    """A goal and the data that belong to it: one input, and the labels as its one output."""

    goal: Goal
    split: Split

    def inputs(self, part: Part) -> dict[str, Array]:
        """Rows by input port, as a request brings them."""
        return {self.goal.inputs[0].name: part.x}

    def truth(self, part: Part) -> dict[str, Array]:
        """The right answers by output port."""
        return {self.goal.outputs[0].name: part.y}

    def validated(self, folder: Path) -> Goal:
        """The goal with its validation rows written into `folder`."""
        rows = {**self.inputs(self.split.validation), **self.truth(self.split.validation)}
        return replace(self.goal, validation=str(data.write_rows(folder / f"{self.goal.name}.npz", rows)))


def tasks(seed: int = SEED) -> tuple[Task, ...]:
    """Every goal of the demo with its data."""
    images = data.digits(seed)
    odd = Split(*(Part(part.x, part.y % 2) for part in (images.train, images.validation, images.held_out)))
    return (
        Task(READ_DIGIT, images),
        Task(READ_SCAN, data.scans(seed)),
        Task(TELL_PARITY, odd),
        Task(IDENTIFY_WINE, data.wines(seed)),
        Task(SCREEN_TUMOUR, data.tumours(seed)),
    )
