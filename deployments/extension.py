"""Extensions: the base class that a data scientist writes against, the decorator, and `execute`, which runs a batch.

    class ReadDigit(Extension):
        inputs = {"image": Feature("image/digit", "FP32", (8, 8))}
        outputs = {"digit": Feature("label/digit", "INT64")}

        def setup(self) -> None:
            self.weights = load_weights()

        def infer(self, image: Array) -> Array:
            return np.argmax(image.reshape(len(image), -1) @ self.weights, axis=1)

What an extension must hold to is written down in `deployments/contract.py` as checks.
"""

from __future__ import annotations

import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from planner.cards import Accuracy, Card, ChainRule, Kind, LatencyProfile, Resources, Sharing, Threshold
from planner.errors import BadCard, BadInput, ExtensionBroken, ExtensionRaised, FenixError, near
from planner.features import DATATYPES, Array, Feature, Port, Rows, check_rows, datatype_of, shapes_unify

__all__ = ["Extension", "FunctionExtension", "Result", "Scored", "execute", "extension"]

_ROUNDING = 1e-4  # a softmax in half precision may sum to a little over 1
_MESSAGE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Scored:
    """Outputs together with how sure the extension is of each row: `confidence` in [0, 1], shape (n_rows,)."""

    outputs: Array | Mapping[str, Array]
    confidence: Array


Result = Array | Mapping[str, Array] | Scored


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").strip("-").lower()


class Extension(ABC):
    """One model or component. Class attributes describe it, `setup` loads it, `infer` works on a batch of rows.

    The attributes mean what the fields of `planner.cards.Card` of the same name mean. A constructor takes arguments
    of types that JSON has: a replica in another process makes the extension again from them.
    """

    name: str = ""  # default: the class name in kebab-case
    version: str = "1"
    description: str = ""
    examples: tuple[str, ...] = ()
    inputs: Mapping[str, Feature | Port]
    outputs: Mapping[str, Feature]
    kind: Kind = "function"
    cost: float = 0.0
    profile: LatencyProfile = LatencyProfile()
    accuracy: Accuracy = Accuracy()
    confidence_threshold: float | None = None
    thresholds: tuple[Threshold, ...] = ()
    may_see: frozenset[str] | None = None
    site: str = "local"
    after: ChainRule = ChainRule()
    replaces: tuple[str, ...] = ()
    deterministic: bool = True
    cache: Sharing = "shared"
    resources: Resources = Resources()

    source: str = ""  # set by loading; default: where the class can be imported from
    options: Mapping[str, Any]  # the arguments it was constructed with

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = _kebab(cls.__name__)

    def __new__(cls, *positional: Any, **options: Any) -> Self:
        self = super().__new__(cls)
        named = zip(list(inspect.signature(cls.__init__).parameters)[1:], positional, strict=False)
        self.options = {**dict(named), **options}
        return self

    def __init__(self) -> None:  # noqa: B027
        # Without this, `object.__init__` would swallow misspelt options, because `__new__` is overridden.
        pass

    def setup(self) -> None:  # noqa: B027 - overriding is optional
        """Loads weights and the like, once per replica before the first `infer`. May be slow."""

    def close(self) -> None:  # noqa: B027 - overriding is optional
        """Gives back what `setup` took (connections, files), when the replica ends. Not called after a crash."""

    # `*_` is there for the type checker only: with it, an override may name its ports as parameters.
    @abstractmethod
    def infer(self, *_: Any, **inputs: Any) -> Result:
        """Works on one batch: a keyword per input port, each array (n_rows, *shape) and READ-ONLY.

        Returns the array (n_rows, *shape) where there is one output, a dict by output name otherwise; `Scored`
        around either adds a confidence per row. Raise BadInput for rows that make no sense; anything else that is
        raised counts as a failure of the extension.
        """

    def samples(self, n_rows: int, rng: np.random.Generator) -> dict[str, Array]:
        """Example rows for the contract and the latency profile; random rows that fit the ports unless overridden.

        Free dimensions get one small length for the whole call, so that ports that belong together fit together.
        """
        length = int(rng.integers(2, 6))
        samples = {}
        for port in self.input_ports:
            shape = tuple(length if d == -1 else d for d in port.feature.shape)
            stack = (min(port.many, 3),) if port.many > 1 else ()
            samples[port.name] = random_values(port.feature.datatype, (n_rows, *stack, *shape), rng)
        return samples

    @cached_property
    def input_ports(self) -> tuple[Port, ...]:
        """The input ports in the order they were declared. Raises BadCard when `inputs` is missing or wrong."""
        return _ports(self, "inputs")

    @cached_property
    def output_ports(self) -> tuple[Port, ...]:
        """The output ports in the order they were declared. Raises BadCard when `outputs` is missing or wrong."""
        return _ports(self, "outputs")

    def card(self) -> Card:
        """The card as the author describes it. Raises BadCard, saying what to change in the class."""
        owner = type(self).__qualname__
        for port in self.output_ports:
            if port.many > 1:
                raise BadCard(f"{owner}.outputs[{port.name!r}]: only an input can take many sources.")
        check_parameters(owner, self._infer_signature(), self.input_ports)
        try:
            json.dumps(self.options)
        except (TypeError, ValueError) as error:
            raise BadCard(
                f"{owner}: the options cannot be written down as JSON ({error}).",
                hint="Pass numbers, texts, lists and dicts; a path instead of an object.",
            ) from None
        return Card(
            name=self.name,
            version=self.version,
            inputs=self.input_ports,
            outputs=self.output_ports,
            description=self.description or _first_paragraph(type(self)),
            examples=tuple(self.examples),
            kind=self.kind,
            source=self.source or f"{type(self).__module__}:{owner}",
            options=dict(self.options),
            cost=self.cost,
            profile=self.profile,
            accuracy=self.accuracy,
            confidence_threshold=self.confidence_threshold,
            thresholds=tuple(self.thresholds),
            may_see=self.may_see,
            site=self.site,
            after=self.after,
            replaces=tuple(self.replaces),
            deterministic=self.deterministic,
            cache=self.cache,
            resources=self.resources,
        )

    def _infer_signature(self) -> inspect.Signature:
        return inspect.signature(self.infer)


class FunctionExtension(Extension):
    """An extension around a plain function. `@extension` makes one subclass per function.

    Parameters of the function that are not input ports are its options: `scale(by=8)`.
    """

    function: ClassVar[Callable[..., Result]]

    def __init__(self, **options: Any) -> None:
        ports = {port.name for port in self.input_ports}
        known = [name for name in self._infer_signature().parameters if name not in ports]
        for option in options:
            if option not in known:
                raise BadCard(f"{self.name}: there is no option {option!r}.", hint=near(option, known))

    def infer(self, *_: Any, **inputs: Any) -> Result:
        return type(self).function(**inputs, **self.options)

    def _infer_signature(self) -> inspect.Signature:
        return inspect.signature(type(self).function)


def extension(
    *, inputs: Mapping[str, Feature | Port], outputs: Mapping[str, Feature], **attributes: Any
) -> Callable[[Callable[..., Result]], type[FunctionExtension]]:
    """Turns a plain function over a batch into an extension class; `attributes` are those of `Extension`.

        @extension(inputs={"image": Feature("image/raw", "FP32", (8, 8))},
                   outputs={"image": Feature("image/digit", "FP32", (8, 8))})
        def scale(image, by=16.0):
            return image / by

    `scale()` is then an extension, `scale(by=8.0)` one with other options; `scale.function` is the function itself.
    The name defaults to the function's in kebab-case, the description to its docstring's first paragraph.
    Raises BadCard when ports and parameters do not match.
    """

    def decorate(function: Callable[..., Result]) -> type[FunctionExtension]:
        for attribute in attributes:
            if attribute not in _ATTRIBUTES:
                raise BadCard(f"@extension: there is no {attribute!r}.", hint=near(attribute, _ATTRIBUTES))
        body = {
            "name": _kebab(function.__name__),
            **attributes,
            "inputs": inputs,
            "outputs": outputs,
            "function": staticmethod(function),
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
        }
        made = type(function.__name__, (FunctionExtension,), body)
        made().card()
        return made

    return decorate


_ATTRIBUTES = frozenset(Extension.__annotations__) - {"inputs", "outputs", "source", "options"}


def execute(ext: Extension, rows: Mapping[str, Array]) -> dict[str, Rows]:
    """Runs one batch through an extension that is set up, checking what goes in and what comes out.

    `rows` holds an array (n_rows, *shape) per input port; it is not modified, the extension sees read-only views.
    Outputs whose dtype differs from the card's in width alone (float64 for FP32, int64 for UINT8) are cast, integers
    only where every value fits; texts become bytes (UTF-8) for BYTES.

    Raises BadInput for the caller's mistakes and those the extension finds, ExtensionRaised (type and message, no
    trace) when its code raises, ExtensionBroken when what it returns does not fit its ports.
    """
    inputs, n_rows = check_inputs(ext, rows)
    try:
        result = ext.infer(**inputs)
    except FenixError:
        raise
    except (Exception, SystemExit) as error:
        text = str(error)[:_MESSAGE_LENGTH]
        raise ExtensionRaised(f"{ext.name}@{ext.version} raised {type(error).__name__}: {text}") from error
    return check_outputs(ext, result, n_rows)


def check_inputs(ext: Extension, rows: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """Read-only views of `rows` by input port, and how many rows there are. Raises BadInput."""
    ports = ext.input_ports
    if len(rows) != len(ports) or any(port.name not in rows for port in ports):
        names = [port.name for port in ports]
        for name in names:
            if name not in rows:
                raise BadInput(f"input {name!r} is missing.", hint=f"{ext.name} takes {', '.join(names)}.")
        for name in rows:
            if name not in names:
                raise BadInput(f"{ext.name} has no input {name!r}.", hint=near(name, names))
    n_rows: int | None = None
    views = {}
    for port in ports:
        values = rows[port.name]
        if not isinstance(values, np.ndarray):
            raise BadInput(f"input {port.name!r} is a {type(values).__name__}, not an array.")
        feature = port.feature
        if port.many > 1:
            feature = Feature(feature.type, feature.datatype, (-1, *feature.shape))
        check_rows(port.name, values, feature, n_rows)
        if port.many > 1 and not 2 <= values.shape[1] <= port.many:
            raise BadInput(f"input {port.name!r} takes 2 to {port.many} sources, not {values.shape[1]}.")
        n_rows = len(values)
        view = values.view()
        view.flags.writeable = False
        views[port.name] = view
    return views, n_rows or 0


def check_outputs(ext: Extension, result: Result, n_rows: int) -> dict[str, Rows]:
    """What `infer` returned, as rows by output port. Raises ExtensionBroken with a sentence for the author."""
    ports = ext.output_ports
    names = [port.name for port in ports]
    who = f"{ext.name}@{ext.version}"
    confidence = None
    if isinstance(result, Scored):
        confidence = _confidence(who, result.confidence, n_rows)
        result = result.outputs
    outputs: Mapping[str, Any]
    if isinstance(result, Mapping):
        outputs = result
    elif len(ports) == 1:
        outputs = {names[0]: result}
    else:
        raise ExtensionBroken(
            f"{who} returned {_a(result)} for {len(ports)} outputs.",
            hint=f"Return a dict with the keys {', '.join(names)}.",
        )
    for name in names:
        if name not in outputs:
            raise ExtensionBroken(f"{who} returned no {name!r}, only {', '.join(map(repr, outputs)) or 'nothing'}.")
    for name in outputs:
        if name not in names:
            raise ExtensionBroken(f"{who} returned {name!r}, which is not an output.", hint=near(str(name), names))
    return {
        port.name: Rows(_output(f"{who}: output {port.name!r}", outputs[port.name], port.feature, n_rows), confidence)
        for port in ports
    }


def _output(what: str, values: Any, feature: Feature, n_rows: int) -> Array:
    if not isinstance(values, np.ndarray):
        raise ExtensionBroken(f"{what} is {_a(values)}, not a numpy array.", hint=_way_to_numpy(values))
    if isinstance(values, np.ma.MaskedArray):  # the mask would be lost on the way, and what is under it be taken
        raise ExtensionBroken(f"{what} is a masked array.", hint="Return `values.filled(...)`.")
    if values.ndim == 0 or len(values) != n_rows:
        got = "a single value" if values.ndim == 0 else f"{len(values)} rows"
        raise ExtensionBroken(f"{what} has {got} for {n_rows} rows of input.", hint="Return one row per input row.")
    if not shapes_unify(feature.shape, values.shape[1:]):
        raise ExtensionBroken(
            f"{what} has rows of shape {list(values.shape[1:])}, but the card says {list(feature.shape)}.",
            hint="Reshape in `infer`, or change `outputs`.",
        )
    wanted = DATATYPES[feature.datatype]
    if wanted.kind == "O":
        return _as_bytes(what, values)
    if values.dtype == wanted:
        return values
    if values.dtype.kind == wanted.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(wanted)
    if values.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if not (limits.min <= low and high <= limits.max):
            raise ExtensionBroken(f"{what} has values from {low} to {high}, which {feature.datatype} cannot hold.")
        return values.astype(wanted)
    raise ExtensionBroken(
        f"{what} has dtype {values.dtype}, but the card says {feature.datatype}.",
        hint=f"Return it as {wanted}, or change `outputs`.",
    )


def _as_bytes(what: str, values: Array) -> Array:
    if values.dtype.kind not in "OSU":
        raise ExtensionBroken(f"{what} has dtype {values.dtype}, but the card says BYTES.", hint="Return texts.")
    flat = values.reshape(-1)
    if values.dtype.kind == "O" and set(map(type, flat)) == {bytes}:
        return values
    made = np.empty(flat.shape, dtype=object)
    for i, value in enumerate(flat):
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            raise ExtensionBroken(f"{what} holds {_a(value)} among its BYTES.", hint="Return bytes or texts.")
        made[i] = bytes(value)
    return made.reshape(values.shape)


def _confidence(who: str, values: Any, n_rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise ExtensionBroken(f"{who}: the confidence is {_a(values)}, not an array of floats.")
    if values.shape != (n_rows,):
        raise ExtensionBroken(f"{who}: the confidence has shape {list(values.shape)}, not [{n_rows}].")
    low, high = float(values.min()), float(values.max())
    if not (low >= -_ROUNDING and high <= 1.0 + _ROUNDING):  # NaN fails too
        raise ExtensionBroken(f"{who}: a confidence lies in [0, 1]; got {low} to {high}.")
    if low < 0.0 or high > 1.0:
        values = values.clip(0.0, 1.0)
    narrow: np.ndarray[Any, np.dtype[np.float32]] = values.astype(np.float32, copy=False)
    return narrow


def random_values(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random values of an Open Inference datatype: floats in [0, 1), small whole numbers, short words."""
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "O":
        words = np.array([b"ash", b"birch", b"elm", b"oak", b"pine", b"rowan"], dtype=object)
        return words[rng.integers(0, len(words), shape)]
    return rng.integers(0, 10, shape).astype(dtype)


def check_parameters(owner: str, signature: inspect.Signature, ports: tuple[Port, ...]) -> None:
    """Raises BadCard unless a function with this signature can be called with one keyword per input port."""
    kinds = inspect.Parameter
    names = [port.name for port in ports]
    named = {
        n: p for n, p in signature.parameters.items() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    for name in names:
        if name not in named and not takes_any:
            raise BadCard(
                f"{owner}: there is an input port {name!r}, but the function takes ({', '.join(named)}).",
                hint=near(name, named) or "Give the function one parameter per input port.",
            )
    for name, parameter in named.items():
        if name not in names and parameter.default is kinds.empty:
            raise BadCard(
                f"{owner}: the function takes {name!r}, but the input ports are {', '.join(names)}.",
                hint=f"Add {name!r} to `inputs`, or give the parameter a default.",
            )


def _ports(ext: Extension, side: str) -> tuple[Port, ...]:
    owner = type(ext).__qualname__
    declared = getattr(ext, side, None)
    if not declared:
        raise BadCard(
            f"{owner} declares no `{side}`.",
            hint=f'Write for example: {side} = {{"image": Feature("image/digit", "FP32", (8, 8))}}.',
        )
    if not isinstance(declared, Mapping):
        raise BadCard(f"{owner}.{side} is {_a(declared)}, not a dict of features by name.")
    ports = []
    for name, given in declared.items():
        if isinstance(given, Feature):
            given = Port(name, given)
        if not isinstance(given, Port):
            raise BadCard(f"{owner}.{side}[{name!r}] is {_a(given)}, not a Feature.")
        if given.name != name:
            raise BadCard(f"{owner}.{side}[{name!r}] is a port of another name, {given.name!r}.")
        ports.append(given)
    return tuple(ports)


def _first_paragraph(cls: type[Extension]) -> str:
    own = cls.__dict__.get("__doc__") or ""  # an inherited docstring describes another extension
    return " ".join(inspect.cleandoc(own).split("\n\n")[0].split())


def _a(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {datatype_of(value) if value.dtype in DATATYPES.values() else value.dtype}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _way_to_numpy(value: Any) -> str:
    if value is None:
        return "Does `infer` end with a return?"
    if type(value).__module__.split(".")[0] == "torch":
        return "Return `tensor.numpy()`."
    return "Return `np.asarray(...)`."
