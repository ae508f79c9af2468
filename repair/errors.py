"""What repair and labelling refuse, as part of the house's tree (`planner/errors.py`).

RepairRefused        422  FAILED_PRECONDITION
├── NoParameterSpace 422                       trees and remote models: there is nothing to subtract
├── ParametersDiffer 422                       pruned, quantised or distilled: other names, shapes or dtypes
├── WeightsBroken    422                       weights that are not finite
├── Diverged         422                       a refinement that did not stay finite, or made things worse
└── TruthLacking     422                       too few labelled rows, or one class only
LabelRefused         400  INVALID_ARGUMENT     a label or a file of labels that is malformed
LabelItemNotFound    404  NOT_FOUND            a label for an item that nobody asked for
"""

from __future__ import annotations

from lineage.errors import FenixError


class RepairRefused(FenixError):
    """A repair cannot be done, or not this way. HTTP 422, gRPC FAILED_PRECONDITION. The hint says what is left."""

    status = 422
    grpc_status = "FAILED_PRECONDITION"


class NoParameterSpace(RepairRefused):
    """The model has no parameters to move in, such as trees. HTTP 422. Roll back, or let the lineage vote."""


class ParametersDiffer(RepairRefused):
    """Two versions differ in names, shapes or dtypes of their parameters. HTTP 422. Roll back, or refine."""


class WeightsBroken(RepairRefused):
    """Weights with NaN or infinite values. HTTP 422. Take another ancestor."""


class Diverged(RepairRefused):
    """A refinement left the finite numbers, or the loss grew instead of falling. HTTP 422. Lower the step size."""


class TruthLacking(RepairRefused):
    """Too few labelled rows, or rows of one class only, to judge by. HTTP 422. Label more rows, some at random."""


class LabelRefused(FenixError):
    """A label, or a file of labels, that is malformed. HTTP 400, gRPC INVALID_ARGUMENT."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"


class LabelItemNotFound(FenixError):
    """The label queue has no such item. HTTP 404, gRPC NOT_FOUND."""

    status = 404
    grpc_status = "NOT_FOUND"
