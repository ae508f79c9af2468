"""Feedback in bulk: files of CSV or Parquet, read in pieces so that a million rows take no more memory than some
thousands."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from lineage.errors import FeedbackRefused, FenixError
from lineage.feedback import Feedback

PIECE_ROWS = 5_000
MOST_TOLD = 100  # errors that are told in full; the others are counted

Format = Literal["csv", "parquet"]
_COLUMNS = ("trace_id", "output", "truth", "rating", "about_s", "user")


@dataclass(frozen=True, slots=True)
class RowError:
    """What is wrong with a row; the first row of data is row 1."""

    row: int
    error: FenixError


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a file: the good ones with their numbers, and of the bad ones how many there are, and why."""

    feedback: tuple[Feedback, ...]
    rows: tuple[int, ...]  # of each feedback
    errors: tuple[RowError, ...]
    n_errors: int


def format_of(path: Path) -> Format:
    """The format by the file's ending. Raises FeedbackRefused for another one."""
    ending = path.suffix.lower()
    if ending in (".parquet", ".pq"):
        return "parquet"
    if ending == ".csv":
        return "csv"
    raise FeedbackRefused(f"{path.name} is neither .csv nor .parquet.", hint="Rename it, or say which it is.")


def read_bulk(source: Path | bytes, format: Format, now_s: float) -> Iterator[Piece]:
    """Reads feedback from a file, or from its bytes, in pieces of at most `PIECE_ROWS` rows.

    The columns are trace_id and any of output, truth, rating, about_s, user; a cell that is empty or null counts as
    left out. In CSV (UTF-8, with a line of names) a truth is read as JSON where it is a number, true, false, a list or
    a quoted text, else as a text. In Parquet a truth has the type of its column, lists too, and about_s may be a
    timestamp. Of all bad rows together at most `MOST_TOLD` are told.
    Raises FeedbackRefused when the whole file cannot be read; the pieces before that count.
    """
    left = MOST_TOLD
    rows = _csv_rows(source) if format == "csv" else _parquet_rows(source)
    good: list[Feedback] = []
    numbers: list[int] = []
    errors: list[RowError] = []
    n_errors = 0
    for row, found in enumerate(rows, 1):
        try:
            if isinstance(found, FenixError):
                raise found
            good.append(Feedback.parse(found, now_s))
            numbers.append(row)
        except FenixError as error:
            n_errors += 1
            if left:
                left -= 1
                errors.append(RowError(row, error.with_traceback(None)))
        if row % PIECE_ROWS == 0:
            yield Piece(tuple(good), tuple(numbers), tuple(errors), n_errors)
            good, numbers, errors, n_errors = [], [], [], 0
    if good or n_errors:
        yield Piece(tuple(good), tuple(numbers), tuple(errors), n_errors)


def _csv_rows(source: Path | bytes) -> Iterator[Mapping[str, Any] | FeedbackRefused]:
    with _opened(source) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = next(reader, [])
            _check_columns(names)
            for cells in reader:
                if not cells:
                    yield FeedbackRefused("the row is empty.")
                elif len(cells) != len(names):
                    yield FeedbackRefused(f"the row has {len(cells)} cells, the first line {len(names)}.")
                else:
                    yield _of_cells({name: cell for name, cell in zip(names, cells, strict=True) if cell})
        except (csv.Error, UnicodeDecodeError) as error:
            raise FeedbackRefused(f"this is not CSV in UTF-8 after line {reader.line_num}: {error}.") from None


def _of_cells(cells: dict[str, Any]) -> dict[str, Any] | FeedbackRefused:
    if "truth" in cells:
        cells["truth"] = _json_or_text(cells["truth"])
    for name in ("rating", "about_s"):
        if name in cells:
            try:
                cells[name] = float(cells[name])
            except ValueError:
                return FeedbackRefused(f"{name} is a number, not {cells[name][:40]!r}.")
    return cells


def _json_or_text(cell: str) -> Any:
    try:
        value = orjson.loads(cell)
    except orjson.JSONDecodeError:
        return cell
    return cell if isinstance(value, dict) else value


def _parquet_rows(source: Path | bytes) -> Iterator[Mapping[str, Any]]:
    # Imported here: it takes 0.3 s, and few ever need it.
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    with _opened(source) as raw:
        try:
            file = parquet.ParquetFile(raw)
            names = file.schema_arrow.names
            _check_columns(names)
            for batch in file.iter_batches(PIECE_ROWS):
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    yield _of_values(dict(zip(names, cells, strict=True)))
        except pyarrow.ArrowException as error:
            raise FeedbackRefused(f"this is not Parquet: {str(error).splitlines()[0]}") from None


def _of_values(cells: dict[str, Any]) -> dict[str, Any]:
    for name in ("output", "user"):
        if cells.get(name) == "":
            del cells[name]
    about = cells.get("about_s")
    if isinstance(about, datetime):
        cells["about_s"] = (about if about.tzinfo else about.replace(tzinfo=UTC)).timestamp()
    return {name: value for name, value in cells.items() if value == value}  # NaN: pandas' word for left out


def _check_columns(names: list[str]) -> None:
    for name in names:
        if name not in _COLUMNS:
            raise FeedbackRefused(f"unknown column {name[:40]!r}.", hint=f"There are: {', '.join(_COLUMNS)}.")
    if len(set(names)) < len(names):
        raise FeedbackRefused("two columns have the same name.")
    if "trace_id" not in names:
        raise FeedbackRefused("there is no column trace_id.", hint=f"The columns are {', '.join(_COLUMNS)}.")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Any]:
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise FeedbackRefused(f"the file cannot be read: {error}.") from None
    with file:
        yield file
