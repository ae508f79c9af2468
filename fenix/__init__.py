"""The front door: public names, the command line and the client.

    import fenix

    with fenix.Client("http://127.0.0.1:8000") as client:
        result = client.infer("read-digit", images)

Names are imported when they are first used, so that `import fenix` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.extension import Extension, Scored, extension
    from fenix.client import AsyncClient, Client, Result
    from planner import errors
    from planner.cards import Accuracy, Card, ChainRule, LatencyProfile, Resources, Threshold
    from planner.features import Feature, Port
    from planner.goals import Goal, Objective, Terms

__all__ = [
    "Accuracy",
    "AsyncClient",
    "Card",
    "ChainRule",
    "Client",
    "Extension",
    "Feature",
    "Goal",
    "LatencyProfile",
    "Objective",
    "Port",
    "Resources",
    "Result",
    "Scored",
    "Terms",
    "Threshold",
    "errors",
    "extension",
]

_HOMES = {
    "deployments.extension": ("Extension", "Scored", "extension"),
    "fenix.client": ("AsyncClient", "Client", "Result"),
    "planner.cards": ("Accuracy", "Card", "ChainRule", "LatencyProfile", "Resources", "Threshold"),
    "planner.features": ("Feature", "Port"),
    "planner.goals": ("Goal", "Objective", "Terms"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("planner.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'fenix' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next use finds it without asking
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
