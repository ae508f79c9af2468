"""The root of the error tree, and what the stores raise. The whole tree is drawn in `planner/errors.py`."""

from __future__ import annotations

from typing import ClassVar


class FenixError(Exception):
    """Anything that Fenix raises on purpose.

    `status` is the HTTP status, `grpc_status` the name of the gRPC code, `hint` what to do next (one sentence,
    may be empty). `str(error)` is the message alone; `error.text()` adds the hint.
    """

    status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def text(self) -> str:
        """The message followed by the hint, as a user reads it."""
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the default protocol would drop the keyword-only hint.
        return _rebuild, (type(self), self.message, self.hint, dict(self.__dict__))


def _rebuild(kind: type[FenixError], message: str, hint: str, state: dict[str, object]) -> FenixError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state, message=message, hint=hint)
    return error


class StoreUnavailable(FenixError):
    """The database or the model registry does not answer. HTTP 503, gRPC UNAVAILABLE. Nothing was written."""

    status = 503
    grpc_status = "UNAVAILABLE"


class ModelNotFound(FenixError):
    """No such model version or alias in the registry. HTTP 404, gRPC NOT_FOUND."""

    status = 404
    grpc_status = "NOT_FOUND"


class ArtifactRefused(FenixError):
    """A model artifact cannot be loaded safely or does not match its digest. HTTP 422, gRPC FAILED_PRECONDITION."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"


class FeedbackRefused(FenixError):
    """Feedback that is malformed, or cannot be held against the answer. HTTP 400, gRPC INVALID_ARGUMENT."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"


class NotYourRequest(FenixError):
    """Feedback in the name of another user than the request's. HTTP 403, gRPC PERMISSION_DENIED."""

    status = 403
    grpc_status = "PERMISSION_DENIED"


class RequestNotFound(FenixError):
    """The journal has no request of that trace id: unknown, not yet written, or forgotten. HTTP 404, gRPC NOT_FOUND."""

    status = 404
    grpc_status = "NOT_FOUND"


class LineageRefused(FenixError):
    """A version or edge of the lineage that is malformed or ambiguous. HTTP 400, gRPC INVALID_ARGUMENT."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"


class UnknownVersion(FenixError):
    """The lineage graph has no such version. HTTP 404, gRPC NOT_FOUND. Add the parents before their children."""

    status = 404
    grpc_status = "NOT_FOUND"


class LineageConflict(FenixError):
    """The lineage knows this version, edge or name with other content, which stays. HTTP 409, gRPC ALREADY_EXISTS."""

    status = 409
    grpc_status = "ALREADY_EXISTS"


class LineageCycle(FenixError):
    """An edge that would make a version its own ancestor. HTTP 422, gRPC FAILED_PRECONDITION. Nothing was written."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"
