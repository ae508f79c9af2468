"""Training tables and rows for the tests of drift."""

from __future__ import annotations

from typing import Any

import numpy as np

from lineage.drift import Reference, Sketch, layout_of, learn


def table(n: int, seed: int, shift: float = 0.0) -> dict[str, Any]:
    """Four numbers of which the second may be shifted, one constant, a category, a label and a confidence."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n, 4)).astype(np.float32)
    numbers[:, 3] = numbers[:, 2] + 0.1 * numbers[:, 3]
    numbers[:, 1] += shift
    return {
        "inputs": {
            "x": numbers,
            "still": np.full(n, 2.5, np.float32),
            "city": rng.choice(["bonn", "oslo", "rome"], n, p=[0.6, 0.3, 0.1]).astype(object),
        },
        "outputs": {"label": rng.integers(0, 3, n)},
        "confidence": rng.beta(8.0, 2.0, n).astype(np.float32),
    }


def reference_of(data: dict[str, Any], seed: int = 0) -> Reference:
    layout = layout_of(**data)
    return learn(layout, layout.rows(**data), np.random.default_rng(seed))


def sketch_of(reference: Reference, data: dict[str, Any]) -> Sketch:
    sketch = Sketch(reference.bins)
    sketch.add(reference.layout.rows(**data))
    return sketch


def plain_reference(values: Any, seed: int = 0) -> Reference:
    """Of one tensor alone."""
    return reference_of({"inputs": {"x": np.asarray(values, np.float32)}}, seed)
