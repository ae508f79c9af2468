"""Finds the policies: every concrete kind of `BatchPolicy` in a file of this package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import MappingProxyType

import planner.policies
from planner.policies.policy import BatchPolicy

_NO_KINDS = {"policy", "registry", "call_times", "simulation", "scenarios", "training"}


@cache
def policies() -> MappingProxyType[str, type[BatchPolicy]]:
    """All kinds by name. Imports every file of the package that may hold one."""
    found: dict[str, type[BatchPolicy]] = {}
    for module in pkgutil.iter_modules(planner.policies.__path__):
        if module.name in _NO_KINDS:
            continue
        for kind in vars(importlib.import_module(f"planner.policies.{module.name}")).values():
            concrete = inspect.isclass(kind) and issubclass(kind, BatchPolicy) and not inspect.isabstract(kind)
            if concrete and found.setdefault(kind.name, kind) is not kind:
                raise TypeError(f"{kind.__qualname__} and {found[kind.name].__qualname__} are both {kind.name!r}.")
    return MappingProxyType(dict(sorted(found.items())))


def make_policy(name: str, seed: int = 0, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> BatchPolicy:
    """A new policy of this kind, for one extension version. Raises KeyError for an unknown name."""
    return policies()[name](seed, fixed_ms, per_row_ms)
