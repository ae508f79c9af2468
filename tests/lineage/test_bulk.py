from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lineage.bulk import MOST_TOLD, PIECE_ROWS, Format, Piece, format_of, read_bulk
from lineage.errors import FeedbackRefused
from lineage.feedback import Feedback
from tests.lineage.outcomes import trace

NOW_S = 1e9


def read(source: Path | bytes, format: Format = "csv") -> list[Piece]:
    return list(read_bulk(source, format, NOW_S))


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def csv(*lines: str) -> bytes:
    return "\r\n".join(["trace_id,output,truth,rating,about_s,user", *lines]).encode("utf-8-sig")


def test_a_csv_file_says_numbers_lists_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "truths.csv"
    cells = ["7", "7.5", '"[1,null,2]"', "cat", '"""7"""', '"a, b"', "007", "true", "NaN"]
    path.write_bytes(csv(*(f"{trace(i)},y,{cell},,," for i, cell in enumerate(cells)), f"{trace(99)},,,0.5,5,ann"))
    (piece,) = read(path)
    assert [one.truth for one in piece.feedback[:-1]] == [7, 7.5, (1, None, 2), "cat", "7", "a, b", "007", True, "NaN"]
    assert piece.feedback[-1] == Feedback(trace(99), "", None, 0.5, 5.0, "ann")
    assert (piece.rows, piece.n_errors) == (tuple(range(1, 11)), 0)


def test_bad_rows_are_told_with_their_numbers_and_the_good_ones_count() -> None:
    bad = [f"{trace(1)},y,,,,", f"{trace(1)},y,1,2", "x,y,1,,,", f"{trace(1)},,,good,,", "", f'{trace(1)},,"{{}}",,,']
    (piece,) = read(csv(f"{trace(1)},y,1,,,", *bad, f"{trace(2)},y,1,,,"))
    assert piece.rows == (1, 7, 8)
    messages = {error.row: error.error.message for error in piece.errors}
    for row, part in {2: "neither", 3: "4 cells", 4: "32 hex", 5: "rating is a number", 6: "empty"}.items():
        assert part in messages[row]
    assert piece.feedback[1].truth == "{}"


def test_many_rows_come_in_pieces_and_only_the_first_errors_are_told() -> None:
    lines = [f"{trace(i)},y,{i},,," if i % 2 else "bad,y,1,,," for i in range(2 * PIECE_ROWS + 10)]
    pieces = read(csv(*lines))
    assert [len(piece.feedback) + piece.n_errors for piece in pieces] == [PIECE_ROWS, PIECE_ROWS, 10]
    assert [len(piece.errors) for piece in pieces] == [MOST_TOLD, 0, 0]
    assert sum(piece.n_errors for piece in pieces) == PIECE_ROWS + 5
    assert [row for piece in pieces for row in piece.rows] == list(range(2, 2 * PIECE_ROWS + 11, 2))


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (pa.array([3, None]), [3, None]),
        (pa.array([3.5, float("nan")]), [3.5, None]),
        (pa.array(["7", None]), ["7", None]),
        (pa.array([True, None]), [True, None]),
        (pa.array([[1, 2], None]), [(1, 2), None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    ],
)
def test_a_parquet_file_has_truths_of_its_column_s_type(truth: Any, expected: list[Any]) -> None:
    data = parquet(trace_id=[trace(1), trace(2)], truth=truth, rating=[None, 0.5], user=["", "ann"])
    (piece,) = read(data, "parquet")
    assert [one.truth for one in piece.feedback] == expected
    assert [(one.rating, one.user) for one in piece.feedback] == [(None, ""), (0.5, "ann")]


def test_a_parquet_file_may_have_timestamps_and_what_is_no_truth_is_told() -> None:
    about = pa.array([datetime(2001, 9, 9, tzinfo=UTC), datetime(2001, 9, 8)], pa.timestamp("us"))
    (piece,) = read(parquet(trace_id=[trace(1), trace(2)], truth=[1, 2], about_s=about), "parquet")
    assert [one.about_s for one in piece.feedback] == [1e9 - 6400, 1e9 - 6400 - 86400]
    (piece,) = read(parquet(trace_id=[trace(1)], truth=[b"bytes"]), "parquet")
    assert (piece.feedback, piece.errors[0].row) == ((), 1)


@pytest.mark.parametrize(
    ("data", "format", "message"),
    [
        (b"", "csv", "no column trace_id"),
        (b"trace_id,turth\n", "csv", "unknown column 'turth'"),
        (b"trace_id,truth,truth\n", "csv", "same name"),
        (b"truth\n1\n", "csv", "no column trace_id"),
        (b"trace_id\n\xff\xfe\n", "csv", "not CSV in UTF-8"),
        (b'trace_id\n"x', "csv", "not CSV"),
        (b"trace_id\n" + b"x" * 200_000, "csv", "not CSV"),
        (b"PAR1 nonsense PAR1", "parquet", "not Parquet"),
        (b"", "parquet", "not Parquet"),
        (parquet(truth=[1]), "parquet", "no column trace_id"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(data: bytes, format: Format, message: str) -> None:
    with pytest.raises(FeedbackRefused, match=message):
        read(data, format)


def test_the_ending_says_the_format(tmp_path: Path) -> None:
    assert [format_of(Path(name)) for name in ("a.csv", "a.PARQUET", "a.pq")] == ["csv", "parquet", "parquet"]
    with pytest.raises(FeedbackRefused, match="neither"):
        format_of(Path("a.xls"))
    with pytest.raises(FeedbackRefused, match="cannot be read"):
        read(tmp_path / "none.csv")


def test_pieces_of_a_damaged_file_before_the_damage_count() -> None:
    lines = [f"{trace(i)},y,1,,," for i in range(PIECE_ROWS + 1_000)]
    pieces = read_bulk(csv(*lines) + b"\n\xff", "csv", NOW_S)
    assert len(next(pieces).feedback) == PIECE_ROWS
    with pytest.raises(FeedbackRefused):
        next(pieces)
