"""Feedback in files, from whoever sends them: read in pieces, bounded, and with one error for whatever is wrong with a
file. Gateway and client read with it.

Parquet is read by another process (this module, run): damaged files abort the one that reads them, and small ones may
unpack to more than there is memory.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import orjson

from lineage.bulk import Format, Piece, RowError, read_bulk
from lineage.errors import FeedbackRefused, FenixError
from lineage.feedback import Feedback
from planner.errors import BodyTooLarge

MOST_ROWS = 2_000_000
READER_BYTES, READER_CPU_S = 2 << 30, 300  # that the other process may take

FEEDBACK_PATH = "/v1/feedback"
MEDIA: dict[str, Format] = {"text/csv": "csv", "application/vnd.apache.parquet": "parquet"}


_FIELDS = attrgetter("trace_id", "output", "truth", "rating", "about_s", "user")


def read_upload(source: Path | bytes, format: Format, now_s: float, most_rows: int) -> Generator[Piece, None, None]:
    """See `read_bulk`, which trusts the file more.

    Raises FeedbackRefused for a file that cannot be read, whatever is wrong with it, and BodyTooLarge as soon as it
    turns out to have more than `most_rows` rows; the pieces before that count.
    """
    n_rows = 0
    pieces = read_bulk(source, format, now_s) if format == "csv" else _read_elsewhere(source, now_s)
    for piece in pieces:
        n_rows += len(piece.feedback) + piece.n_errors
        if n_rows > most_rows:
            raise BodyTooLarge(
                f"the file has more than {most_rows} rows.", hint="Split it; giving a row twice is safe."
            )
        yield piece


def _read_elsewhere(source: Path | bytes, now_s: float) -> Iterator[Piece]:
    """The pieces of a Parquet file, as the other process reads them."""
    with ExitStack() as held:
        file = held.enter_context(_opened(source))
        reader = held.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, repr(now_s)],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )
        held.callback(reader.kill)
        assert reader.stdout is not None
        for line in reader.stdout:
            told = orjson.loads(line)
            if told is None:
                return
            if isinstance(told, str):
                raise FeedbackRefused(told)
            items, rows, errors, n_errors = told
            yield Piece(
                tuple([_feedback(*item) for item in items]),
                tuple(rows),
                tuple([RowError(row, FeedbackRefused(said)) for row, said in errors]),
                n_errors,
            )
        raise FeedbackRefused("this is not Parquet, or it unpacks to too much.", hint="Write it anew, or send CSV.")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    """A file that another process can open as its /dev/stdin."""
    try:
        file = source.open("rb") if isinstance(source, Path) else _written(source)
    except OSError as error:
        raise FeedbackRefused(f"the file cannot be read: {error}.") from None
    with file:
        yield file


def _written(body: bytes) -> IO[bytes]:
    file = TemporaryFile()  # noqa: SIM115  # closed by who asked for it
    file.write(body)
    file.seek(0)
    return file


def _feedback(trace_id: str, output: str, truth: Any, rating: Any, about_s: Any, user: str) -> Feedback:
    return Feedback(trace_id, output, tuple(truth) if isinstance(truth, list) else truth, rating, about_s, user)


def _tell(pieces: Iterator[Piece]) -> Iterator[Any]:
    """What the other process says, a line each: pieces, then null, or what the file is refused for."""
    try:
        for piece in pieces:
            errors = [(fault.row, fault.error.text()) for fault in piece.errors]
            yield [_FIELDS(item) for item in piece.feedback], piece.rows, errors, piece.n_errors
    except FenixError as error:
        yield error.text()
    except Exception as error:  # damaged Parquet raises nearly anything
        said = str(error).partition("\n")[0][:200]
        yield f"the file cannot be read as Parquet ({type(error).__name__}: {said})."
    else:
        yield None


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (READER_BYTES, READER_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (READER_CPU_S, READER_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for told in _tell(read_bulk(Path("/dev/stdin"), "parquet", float(sys.argv[1]))):
        sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
        sys.stdout.buffer.flush()
