"""What every extension must hold to, as checks that run on the extension itself: in the tests, and when it is deployed.

The planner batches rows of different requests, splits them again, runs the same rows twice, and feeds one array to
several extensions at once. All of that is right only for extensions that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deployments.extension import Extension, execute, random_values
from planner.errors import BadInput, ExtensionBroken, FenixError
from planner.features import DATATYPES, Array, Rows

# Sums in another order differ in the last bits, so floats are compared with a tolerance: relative, absolute.
_TOLERANCE = {np.dtype(np.float16): (1e-2, 1e-3), np.dtype(np.float32): (1e-4, 1e-5)}
_TOLERANCE_FP64 = (1e-7, 1e-9)

FITS = "runs on its own samples, and the outputs fit the card"
READ_ONLY = "does not mutate its input"
REPEATS = "the same input gives the same output"
ORDER = "the order of rows does not matter"
BATCH = "a batch of n equals n batches of one"  # of which a few are tried, and two halves
KEEPS = "later calls leave earlier outputs alone"
REFUSES = "wrong input gives BadInput"


@dataclass(frozen=True, slots=True)
class Check:
    """One point of the contract and how it went; `reason` says why it failed or was skipped."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """How one extension did, point by point."""

    extension: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")

    def raise_if_failed(self) -> None:
        """Raises ExtensionBroken that names every point that failed."""
        if self.failures:
            said = " ".join(f"{check.name}: {check.reason}" for check in self.failures)
            raise ExtensionBroken(f"{self.extension} breaks the contract of extensions. {said}")


def check_contract(extension: Extension, rng: np.random.Generator, n_rows: int = 17) -> ContractReport:
    """Runs an extension that is set up through the contract, on `n_rows` (at least 2) of its own samples.

    Calls `infer` about ten times: the whole batch, its halves and a few rows alone must agree. Floats are compared
    with a tolerance (relative 1e-2 for FP16, 1e-4 for FP32, 1e-7 for FP64), everything else exactly. Never raises for
    what the extension does.
    """
    who = f"{extension.name}@{extension.version}"
    try:
        rows = extension.samples(n_rows, rng)
        before = {name: _bits(values) for name, values in rows.items()}
        given = execute(extension, rows)
        outputs = _take_rows(given, np.arange(n_rows))  # a copy: an extension might write into what it gave
        _check_finite(outputs)
    except Exception as error:
        return ContractReport(who, tuple(_not_running(error)))
    checks = [Check(FITS, "passed")]
    if extension.deterministic:
        order = rng.permutation(n_rows)
        if (np.diff(order) > 0).all():
            order = order[::-1]
        checks += [
            _check(REPEATS, lambda: _difference(execute(extension, rows), outputs)),
            _check(ORDER, lambda: _difference(execute(extension, _take(rows, order)), _take_rows(outputs, order))),
            _check(BATCH, lambda: _part_by_part(extension, rows, outputs)),
        ]
    else:
        checks += [Check(name, "skipped", "it says that it is not deterministic.") for name in (REPEATS, ORDER, BATCH)]
    checks.append(_check(REFUSES, lambda: _accepted_wrongly(extension, rows, rng)))
    # Looked at last, after all the calls above.
    changed = [name for name in rows if _bits(rows[name]) != before[name]]
    checks.append(_check(READ_ONLY, lambda: f"it changed {', '.join(changed)}." if changed else ""))
    checks.append(_check(KEEPS, lambda: _difference(given, outputs)))
    return ContractReport(who, tuple(checks))


def _check(name: str, find_fault: Callable[[], str]) -> Check:
    """`find_fault` returns what is wrong as a sentence, "" when nothing is."""
    try:
        fault = find_fault()
    except FenixError as error:
        fault = error.text()
    return Check(name, "failed" if fault else "passed", fault)


def _not_running(error: Exception) -> Iterator[Check]:
    text = error.text() if isinstance(error, FenixError) else f"`samples` raised {type(error).__name__}: {error}"
    mutates = isinstance(error.__cause__, ValueError) and "read-only" in text
    if isinstance(error, BadInput):
        text += " Override `samples` with rows that the extension takes."
    yield Check(FITS, "skipped" if mutates else "failed", "it writes to its input." if mutates else text)
    yield Check(READ_ONLY, "failed" if mutates else "skipped", text if mutates else "it does not run.")
    for name in (REPEATS, ORDER, BATCH, REFUSES, KEEPS):
        yield Check(name, "skipped", "it does not run.")


def _check_finite(outputs: Mapping[str, Rows]) -> None:
    """Raises ExtensionBroken: what is no number on an extension's own samples will be none for anybody."""
    for name, rows in outputs.items():
        if rows.values.dtype.kind == "f" and not np.isfinite(rows.values).all():
            bad = np.nonzero(~np.isfinite(rows.values.reshape(len(rows.values), -1)).all(axis=1))[0]
            raise ExtensionBroken(
                f"output {name!r} is NaN or infinite in {len(bad)} of {len(rows.values)} sample rows, first in row "
                f"{bad[0]}.",
                hint="Mend `infer`, or override `samples` with rows that it is made for.",
            )


def _part_by_part(extension: Extension, rows: Mapping[str, Array], outputs: Mapping[str, Rows]) -> str:
    n_rows = len(next(iter(rows.values())))
    middle = n_rows // 2
    alone = [(f"row {i} alone", np.array([i])) for i in sorted({0, middle, n_rows - 1})]
    halves = [("the first half alone", np.arange(middle)), ("the second half alone", np.arange(middle, n_rows))]
    for what, part in (*alone, *halves):
        fault = _difference(execute(extension, _take(rows, part)), _take_rows(outputs, part))
        if fault:
            return f"{what}: {fault}"
    return ""


def _accepted_wrongly(extension: Extension, rows: Mapping[str, Array], rng: np.random.Generator) -> str:
    for what, wrong in _wrong_inputs(extension, rows, rng):
        try:
            execute(extension, wrong)
        except BadInput:
            continue
        except FenixError as error:
            return f"{what} gave {type(error).__name__}: {error.message}"
        return f"{what} was accepted."
    return ""


def _wrong_inputs(
    extension: Extension, rows: Mapping[str, Array], rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Each way in which the samples can be made wrong, with a name for it."""
    yield "a surplus input", {**rows, "surplus-input": np.zeros(len(next(iter(rows.values()))))}
    for port in extension.input_ports:
        name, values = port.name, rows[port.name]
        others = [datatype for datatype in DATATYPES if datatype != port.feature.datatype]
        other = others[int(rng.integers(len(others)))]
        yield f"{name!r} missing", {key: value for key, value in rows.items() if key != name}
        yield f"{name!r} as {other}", {**rows, name: random_values(other, values.shape, rng)}
        yield f"{name!r} with one dimension more", {**rows, name: values[..., np.newaxis]}
        yield f"{name!r} without rows", {**rows, name: values[:0]}
        if len(rows) > 1:
            yield f"{name!r} with a row less", {**rows, name: values[:-1]}
        if port.feature.shape and port.feature.shape[-1] != -1:
            yield f"{name!r} with longer rows", {**rows, name: np.concatenate([values, values], axis=-1)}


def _difference(got: Mapping[str, Rows], expected: Mapping[str, Rows]) -> str:
    for name, rows in expected.items():
        other = got[name]
        if not _same(other.values, rows.values):
            return f"{name!r} differs."
        if (other.confidence is None) != (rows.confidence is None):
            return "the confidence is there only sometimes."
        if (
            rows.confidence is not None
            and other.confidence is not None
            and not _same(other.confidence, rows.confidence)
        ):
            return "the confidence differs."
    return ""


def _same(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    relative, absolute = _TOLERANCE.get(a.dtype, _TOLERANCE_FP64)
    return bool(np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True))


def _take(rows: Mapping[str, Array], order: Array) -> dict[str, Array]:
    return {name: values[order] for name, values in rows.items()}


def _take_rows(outputs: Mapping[str, Rows], order: Array) -> dict[str, Rows]:
    return {
        name: Rows(rows.values[order], None if rows.confidence is None else rows.confidence[order])
        for name, rows in outputs.items()
    }


def _bits(values: Array) -> object:
    """What stays the same as long as nobody writes to the array."""
    return values.tolist() if values.dtype.kind == "O" else values.tobytes()
