"""Every error a user of Fenix can meet, with its status and the way out.

FenixError                         500  INTERNAL             (lineage/errors.py)
├── StoreUnavailable               503  UNAVAILABLE          (lineage/errors.py)
├── ModelNotFound                  404  NOT_FOUND            (lineage/errors.py)
├── ArtifactRefused                422  FAILED_PRECONDITION  (lineage/errors.py)
├── FeedbackRefused                400  INVALID_ARGUMENT     (lineage/errors.py)
├── NotYourRequest                 403  PERMISSION_DENIED    (lineage/errors.py)
├── RequestNotFound                404  NOT_FOUND            (lineage/errors.py)
├── RepairRefused                  422  FAILED_PRECONDITION  (repair/errors.py)
│   ├── NoParameterSpace           422                       trees and remote models: there is nothing to subtract
│   ├── ParametersDiffer           422                       pruned, quantised or distilled versions
│   ├── WeightsBroken              422                       weights that are not finite
│   ├── Diverged                   422                       a refinement that did not stay finite
│   └── TruthLacking               422                       too few labelled rows, or of one class only
├── LabelRefused                   400  INVALID_ARGUMENT     (repair/errors.py)
├── LabelItemNotFound              404  NOT_FOUND            (repair/errors.py)
├── LineageRefused                 400  INVALID_ARGUMENT     (lineage/errors.py)
├── UnknownVersion                 404  NOT_FOUND            (lineage/errors.py)
├── LineageConflict                409  ALREADY_EXISTS       (lineage/errors.py)
├── LineageCycle                   422  FAILED_PRECONDITION  (lineage/errors.py)
├── BadRequest                     400  INVALID_ARGUMENT     the client sent something wrong
│   ├── BadInput                   400                       an input tensor: name, type, shape or value
│   ├── BadTerms                   400                       terms that are unknown, ill-typed or contradictory
│   ├── BadCard                    422  FAILED_PRECONDITION  a card, goal or setting that does not validate
│   │   └── ContractBroken         422                       an extension that does not behave as its card says
│   ├── WrongMethod                405  UNIMPLEMENTED        the route does not take this HTTP method
│   └── WrongMedia                 415                       a media type or encoding that is not served
├── BodyTooLarge                   413  RESOURCE_EXHAUSTED   over the limit on bytes or rows
├── NotFound                       404  NOT_FOUND            no such goal, extension, version or route
├── Conflict                       409  ALREADY_EXISTS       the same name and version with other content
├── Unsure                         422  FAILED_PRECONDITION  the sentence could mean several goals, or none
├── NoPlan                         422  FAILED_PRECONDITION  nothing leads from the inputs to what is wanted
│   └── TermsUnmet                 422                       plans exist, but none within the terms
├── Overloaded                     503  UNAVAILABLE          no room, or no time left for it; `retry_after_s` says when
│   └── ShareExceeded              429  RESOURCE_EXHAUSTED   because of the user's own rows that wait already
├── DeadlineExceeded               504  DEADLINE_EXCEEDED    the request's deadline passed
├── Cancelled                      499  CANCELLED            the client went away
├── StepFailed                     502  UNAVAILABLE          an extension could not do its step
│   ├── ExtensionTimeout           504  DEADLINE_EXCEEDED    it passed its budget
│   ├── ExtensionRaised            502                       its code raised
│   ├── ExtensionBroken            502                       it returned wrong names, types, shapes or lengths
│   └── ExtensionUnavailable       503                       no replica answers
└── ClusterDown                    503  UNAVAILABLE          there is no cluster to talk to
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lineage.errors import (
    ArtifactRefused,
    FeedbackRefused,
    FenixError,
    LineageConflict,
    LineageCycle,
    LineageRefused,
    ModelNotFound,
    NotYourRequest,
    RequestNotFound,
    StoreUnavailable,
    UnknownVersion,
)

__all__ = [
    "ArtifactRefused",
    "BadCard",
    "BadInput",
    "BadRequest",
    "BadTerms",
    "BodyTooLarge",
    "Cancelled",
    "ClusterDown",
    "Conflict",
    "ContractBroken",
    "DeadlineExceeded",
    "ExtensionBroken",
    "ExtensionRaised",
    "ExtensionTimeout",
    "ExtensionUnavailable",
    "FeedbackRefused",
    "FenixError",
    "LineageConflict",
    "LineageCycle",
    "LineageRefused",
    "ModelNotFound",
    "NoPlan",
    "NotFound",
    "NotYourRequest",
    "Overloaded",
    "RequestNotFound",
    "ShareExceeded",
    "StepFailed",
    "StoreUnavailable",
    "TermsUnmet",
    "UnknownVersion",
    "Unsure",
    "WrongMedia",
    "WrongMethod",
    "near",
]


class BadRequest(FenixError):
    """The client sent something wrong; sending the same again fails again. HTTP 400, gRPC INVALID_ARGUMENT."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"


class BadInput(BadRequest):
    """An input tensor has the wrong name, datatype, shape, length or value. HTTP 400, gRPC INVALID_ARGUMENT."""


class BadTerms(BadRequest):
    """Terms that are unknown, ill-typed or contradict each other. HTTP 400, gRPC INVALID_ARGUMENT."""


class BadCard(BadRequest):
    """A card, goal or setting does not validate; says where and what is near. HTTP 422, gRPC FAILED_PRECONDITION."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"


class WrongMethod(BadRequest):
    """The route exists, but not for this HTTP method. HTTP 405, gRPC UNIMPLEMENTED."""

    status = 405
    grpc_status = "UNIMPLEMENTED"


class WrongMedia(BadRequest):
    """A body in a media type or content encoding that is not served. HTTP 415, gRPC INVALID_ARGUMENT."""

    status = 415


class ContractBroken(BadCard):
    """An extension failed the behaviour contract on its own sample rows. HTTP 422, gRPC FAILED_PRECONDITION."""


class BodyTooLarge(FenixError):
    """The request is over the limit on bytes or rows. HTTP 413, gRPC RESOURCE_EXHAUSTED. Split it."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class NotFound(FenixError):
    """No goal, extension, version or route of that name. HTTP 404, gRPC NOT_FOUND."""

    status = 404
    grpc_status = "NOT_FOUND"


class Conflict(FenixError):
    """That name and version exists with other content. HTTP 409, gRPC ALREADY_EXISTS. Use a new version."""

    status = 409
    grpc_status = "ALREADY_EXISTS"


class Unsure(FenixError):
    """A sentence that could mean several goals, or none. HTTP 422, gRPC FAILED_PRECONDITION. `nearest` lists goals."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, hint: str = "", nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.nearest = nearest


class NoPlan(FenixError):
    """Nothing leads from the given features to the wanted ones. HTTP 422, gRPC FAILED_PRECONDITION."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"


class TermsUnmet(NoPlan):
    """Plans exist, but none within the terms; says which term is missed and by how much. HTTP 422."""


class Overloaded(FenixError):
    """A bounded queue is full, or so much waits that the deadline would pass. HTTP 503, gRPC UNAVAILABLE.

    Nothing was started; retry after `retry_after_s`.
    """

    status = 503
    grpc_status = "UNAVAILABLE"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ShareExceeded(Overloaded):
    """What the user sent before fills the user's share of the line. HTTP 429, gRPC RESOURCE_EXHAUSTED. Send slower."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(FenixError):
    """The request's own deadline passed before its answer was there. HTTP 504, gRPC DEADLINE_EXCEEDED."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class Cancelled(FenixError):
    """The client went away; nobody reads this answer. HTTP 499, gRPC CANCELLED."""

    status = 499
    grpc_status = "CANCELLED"


class StepFailed(FenixError):
    """An extension could not do its step. HTTP 502, gRPC UNAVAILABLE. The dispatcher may try an alternative."""

    status = 502
    grpc_status = "UNAVAILABLE"


class ExtensionTimeout(StepFailed):
    """A step passed its budget. HTTP 504, gRPC DEADLINE_EXCEEDED. The dispatcher may try a fallback."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class ExtensionRaised(StepFailed):
    """The extension's own code raised. HTTP 502, gRPC UNAVAILABLE. The message names the exception, not its trace."""


class ExtensionBroken(StepFailed):
    """The extension returned wrong names, types, shapes or lengths. HTTP 502, gRPC UNAVAILABLE."""


class ExtensionUnavailable(StepFailed):
    """No replica of the extension answers. HTTP 503, gRPC UNAVAILABLE. Retry; Serve restarts dead replicas."""

    status = 503


class ClusterDown(FenixError):
    """There is no cluster to talk to. HTTP 503, gRPC UNAVAILABLE. Start one with `fenix up`."""

    status = 503
    grpc_status = "UNAVAILABLE"


def near(name: str, known: Iterable[str], n: int = 3) -> str:
    """A hint naming the `n` known names nearest to `name`, or all of them when there are few; may be empty."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=n, cutoff=0.5)
    if close:
        return f"Nearest: {', '.join(close)}."
    if names and len(names) <= 8:
        return f"There are: {', '.join(names)}."
    return ""
