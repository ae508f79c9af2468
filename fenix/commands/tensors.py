"""Inputs from the command line: `NAME=VALUE`, where VALUE is JSON or `@file` (.npy, .npz, .json, .csv)."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from fenix.client import cast
from planner.errors import BadInput, near
from planner.features import DATATYPES, Array

_WRITTEN = re.compile(r"(?:(?P<name>[^=:@\[{\"]+)(?::(?P<datatype>[A-Za-z0-9]+))?=)?(?P<value>.*)", re.DOTALL)
_HOW = "Write NAME=JSON or NAME=@file.npy; files may be .npy, .npz, .json or .csv."


class Given(NamedTuple):
    """Values of one input as they were read. `is_loose`: the file cannot say dtype and shape (.csv, .json)."""

    values: Any
    datatype: str = ""
    is_table: bool = False


def read_inputs(written: Sequence[str]) -> dict[str, Given]:
    """The inputs by name; the name is "" where none is given. Raises BadInput."""
    found: dict[str, Given] = {}
    for text in written:
        match = _WRITTEN.fullmatch(text)
        assert match is not None  # every part is optional
        name, datatype = (match["name"] or "").strip(), (match["datatype"] or "").upper()
        if datatype and datatype not in DATATYPES:
            raise BadInput(f"input {text[:60]!r}: there is no datatype {datatype!r}.", hint=near(datatype, DATATYPES))
        for key, given in _read(name, match["value"]).items():
            if key in found:
                raise BadInput(f"input {key!r} is given twice." if key else "two inputs have no name.", hint=_HOW)
            found[key] = given._replace(datatype=datatype)
    return found


def fit(given: Mapping[str, Given], ports: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The arrays for a goal's or extension's inputs, each of its datatype; tables take the shape of the input.

    `ports` are the inputs of the Open Inference metadata: name, datatype, shape with the rows first.
    Raises BadInput for a name that is not there, or values that do not fit.
    """
    by_name = {port["name"]: port for port in ports}
    arrays = {}
    for name, one in given.items():
        if name == "" and len(by_name) == 1:
            name = next(iter(by_name))
        port = by_name.get(name)
        if port is None:
            known = ", ".join(by_name)
            if not name:
                raise BadInput(f"which input is it? It takes {known}.", hint=_HOW)
            raise BadInput(f"there is no input {name!r}.", hint=near(name, by_name) or f"It takes {known}.")
        values = cast(name, one.values, one.datatype or port["datatype"])
        arrays[name] = _shaped(values, port["shape"]) if one.is_table else values
    return arrays


def as_given(given: Mapping[str, Given]) -> dict[str, Array]:
    """The arrays where no goal says what they are: as they were read, or of the stated datatype."""
    if "" in given:
        raise BadInput("an input has no name.", hint=_HOW)
    return {name: cast(name, one.values, one.datatype) for name, one in given.items()}


def _read(name: str, value: str) -> dict[str, Given]:
    if not value.startswith("@"):
        try:
            return _named(name, orjson.loads(value))
        except orjson.JSONDecodeError:
            raise BadInput(f"input {value[:60]!r} is no JSON.", hint=_HOW) from None
    path = Path(value[1:]).expanduser()
    try:
        if path.suffix == ".npy":
            return {name: Given(np.load(path, allow_pickle=False))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _from_npz(name, path, {key: arrays[key] for key in arrays.files})
        if path.suffix == ".json":
            return _named(name, orjson.loads(path.read_bytes()))
        if path.suffix == ".csv":
            return {name: Given(_table(path), is_table=True)}
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.", hint="Check the path.") from None
    except (ValueError, UnicodeDecodeError, csv.Error) as error:  # BadInput is none of these
        raise BadInput(f"{path} is no good {path.suffix} file: {str(error).splitlines()[0]}.", hint=_HOW) from None
    raise BadInput(f"{path} has no ending that is known.", hint=_HOW)


def _named(name: str, document: Any) -> dict[str, Given]:
    """A JSON object is inputs by name; anything else is the values of one."""
    if isinstance(document, dict):
        if name:
            raise BadInput(f"input {name!r} is a JSON object.", hint="Without a name, its keys are the inputs.")
        return {key: Given(values) for key, values in document.items()}
    return {name: Given(document)}


def _from_npz(name: str, path: Path, arrays: Mapping[str, Array]) -> dict[str, Given]:
    if not name:
        return {key: Given(values) for key, values in arrays.items()}
    key = name if name in arrays else next(iter(arrays)) if len(arrays) == 1 else ""
    if not key:
        raise BadInput(f"{path} has no array {name!r}.", hint=near(name, arrays) or f"It has {', '.join(arrays)}.")
    return {name: Given(arrays[key])}


def _table(path: Path) -> Array:
    """The rows of a CSV file, a first line of column names left out. Shape (n_rows, n_columns), floats or texts."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise BadInput(f"{path} is empty.", hint="Give one line a row.")
    if len({len(line) for line in lines}) > 1:
        at = next(i for i, line in enumerate(lines, 1) if len(line) != len(lines[0]))
        raise BadInput(f"{path}, row {at}: {len(lines[at - 1])} columns, the first row has {len(lines[0])}.")
    numbers = [[_number(cell) for cell in line] for line in lines]
    header = len(lines) > 1 and None in numbers[0] and None not in numbers[1]
    body = numbers[header:]
    if any(None in row for row in body):
        return np.array(lines, dtype=object)
    return np.array(body, dtype=np.float64)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _shaped(table: Array, shape: Sequence[int]) -> Array:
    """A table's rows in the shape of an input, where that is fully known and the sizes agree."""
    row = tuple(shape[1:])
    if -1 not in row and math.prod(row) == table.shape[1]:
        return table.reshape(len(table), *row)
    return table
