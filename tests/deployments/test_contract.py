"""Every extension in our packages is found here and held to the contract; and each way to break it is caught."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import deployments
import fenix
import tests.deployments.extensions
from deployments import contract
from deployments.contract import ContractReport, check_contract
from deployments.extension import Extension, FunctionExtension, Scored, extension
from planner.errors import BadInput, ExtensionBroken
from planner.features import Array, Feature

# Extensions that are not made from nothing: what they need, and where they are held to the contract instead.
EXCLUDED = {
    "FunctionExtension": "the base of decorated functions, without a function",
    "TorchExtension": "needs a saved model: tests/deployments/kinds/test_torch.py",
    "SklearnExtension": "needs a saved model: tests/deployments/kinds/test_sklearn.py",
    "MlflowExtension": "needs a saved model: tests/deployments/kinds/test_mlflow.py",
    "RemoteExtension": "needs another server: tests/deployments/kinds/test_remote.py",
    "FusedExtension": "needs its parts: tests/deployments/kinds/test_fused.py",
}


MAY_DEFINE = re.compile(r"Extension\b|@extension\b")
NEEDS_RAY = re.compile(r"^(import|from) ray\b", re.MULTILINE)  # the machinery around extensions, not extensions


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """The modules that could define an extension. Not simply all: Ray must not be imported before its flags are set."""
    for path in sorted(Path(*package.__path__).rglob("*.py")):
        text = path.read_text()
        if MAY_DEFINE.search(text) and not NEEDS_RAY.search(text):
            parts = path.relative_to(*package.__path__).with_suffix("").parts
            yield importlib.import_module(".".join((package.__name__, *parts)).removesuffix(".__init__"))


def discovered() -> list[type[Extension]]:
    """Every concrete extension class and decorated function at the top of one of our modules."""
    modules = [*modules_of(deployments), *modules_of(fenix), tests.deployments.extensions]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Extension)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda value: value.__qualname__)


ALL = discovered()


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__qualname__) for kind in ALL])
def test_every_extension_holds_to_the_contract(kind: type[Extension]) -> None:
    if kind.__qualname__ in EXCLUDED:
        pytest.skip(EXCLUDED[kind.__qualname__])
    made = kind()
    made.card()
    made.setup()
    report = check_contract(made, np.random.default_rng(7))
    assert report.passed, report.failures


def test_no_exclusion_has_outlived_its_extension() -> None:
    assert set(EXCLUDED) <= {kind.__qualname__ for kind in ALL}


def judged(function: Any, **attributes: Any) -> ContractReport:
    """The report on a function with one FP32 input `x` of 3 numbers a row and one output `y`."""
    row = Feature("row", "FP32", (3,))
    made = extension(inputs={"x": row}, outputs={"y": row}, name="judged", **attributes)(function)()
    return check_contract(made, np.random.default_rng(3))


def failed(report: ContractReport) -> set[str]:
    return {check.name for check in report.failures}


def test_an_honest_function_passes_every_point() -> None:
    report = judged(lambda x: x * 2)
    assert [check.outcome for check in report.checks] == ["passed"] * 7
    report.raise_if_failed()


def test_writing_to_the_input_is_caught() -> None:
    def write(x: Array) -> Array:
        x *= 2
        return x

    report = judged(write)
    assert failed(report) == {contract.READ_ONLY}
    with pytest.raises(ExtensionBroken, match="does not mutate its input: judged@1 raised ValueError"):
        report.raise_if_failed()


def test_writing_to_the_input_behind_its_back_is_caught() -> None:
    def write(x: Array) -> Array:
        assert x.base is not None
        x.base[0] += 1
        return x * 2

    assert contract.READ_ONLY in failed(judged(write))


def test_a_memory_between_calls_is_caught() -> None:
    calls: list[int] = []

    def remember(x: Array) -> Array:
        calls.append(1)
        return x + len(calls)

    assert contract.REPEATS in failed(judged(remember))


def test_randomness_is_caught_unless_it_is_declared() -> None:
    rng = np.random.default_rng(0)

    def guess(x: Array) -> Array:
        return rng.random(x.shape)

    assert contract.REPEATS in failed(judged(guess))
    report = judged(guess, deterministic=False)
    assert report.passed
    assert {check.name for check in report.checks if check.outcome == "skipped"} == {
        contract.REPEATS,
        contract.ORDER,
        contract.BATCH,
    }


def test_looking_at_the_position_of_a_row_is_caught() -> None:
    assert contract.ORDER in failed(judged(lambda x: x + np.arange(len(x))[:, None]))


def test_looking_at_the_other_rows_is_caught() -> None:
    assert failed(judged(lambda x: x - x.mean(axis=0))) == {contract.BATCH}


def test_a_confidence_that_depends_on_the_batch_is_caught() -> None:
    report = judged(lambda x: Scored(x, np.full(len(x), 1 / len(x))))
    assert failed(report) == {contract.BATCH}
    assert "row 0 alone: the confidence differs" in report.failures[0].reason


@pytest.mark.parametrize("n_rows", [2, 7, 8, 16])
def test_another_answer_for_larger_batches_is_caught(n_rows: int) -> None:
    assert contract.BATCH in failed(judged(lambda x: x * 2 if len(x) <= n_rows else x))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_caught(value: float) -> None:
    def sometimes(x: Array) -> Array:
        return np.where(x > np.median(x), np.float32(value), x)

    report = judged(sometimes)
    assert failed(report) == {contract.FITS}
    assert "output 'y' is NaN or infinite in" in report.failures[0].reason
    assert "override `samples`" in report.failures[0].reason


def test_masked_outputs_are_caught() -> None:
    report = judged(lambda x: np.ma.masked_greater(x, 0.5))
    assert failed(report) == {contract.FITS}
    assert "output 'y' is a masked array" in report.failures[0].reason


def test_giving_the_same_buffer_twice_is_caught() -> None:
    buffer = np.zeros((17, 3), np.float32)

    def reuse(x: Array) -> Array:
        np.multiply(x, 2, out=buffer[: len(x)])
        return buffer[: len(x)]

    assert failed(judged(reuse)) == {contract.KEEPS}


def test_outputs_that_do_not_fit_the_card_are_caught() -> None:
    report = judged(lambda x: x[:, :2])
    assert failed(report) == {contract.FITS}
    assert "rows of shape [2]" in report.failures[0].reason


def test_samples_that_the_extension_refuses_are_caught_with_a_way_out() -> None:
    def picky(x: Array) -> Array:
        raise BadInput("x is not a probability")

    assert "Override `samples`" in judged(picky).failures[0].reason


def test_samples_that_raise_are_caught() -> None:
    class Sampled(FunctionExtension):
        inputs = {"x": Feature("row")}
        outputs = {"y": Feature("row")}
        function = staticmethod(lambda x: x)

        def samples(self, n_rows: int, rng: np.random.Generator) -> dict[str, Array]:
            raise FileNotFoundError("samples.npz")

    (failure,) = check_contract(Sampled(), np.random.default_rng(0)).failures
    assert failure.reason == "`samples` raised FileNotFoundError: samples.npz"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_noise_in_the_last_bits_is_no_difference(dtype: Any) -> None:
    datatype = {np.float16: "FP16", np.float32: "FP32", np.float64: "FP64"}[dtype]
    row = Feature("row", datatype, (3,))

    def noisy(x: Array) -> Array:
        return x * (1 + np.finfo(dtype).eps * (len(x) % 2)).astype(dtype)

    made = extension(inputs={"x": row}, outputs={"y": row}, name="noisy")(noisy)()
    assert check_contract(made, np.random.default_rng(0)).passed
