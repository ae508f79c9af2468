"""The tabular networks: three models that tell wines apart and what joins their votes, two that read a tumour."""

from __future__ import annotations

import numpy as np

from deployments.extension import extension
from planner.features import Array, Feature, Port

ANALYSIS = Feature("table/wine", "FP64", (13,))
CULTIVAR = Feature("label/wine", "INT64")
NUCLEI = Feature("table/tumour", "FP64", (30,))
TUMOUR = Feature("label/tumour", "INT64")


@extension(inputs={"votes": Port("votes", CULTIVAR, many=3)}, outputs={"cultivar": CULTIVAR})
def wine_vote(votes: Array) -> Array:
    """Lets several models vote on the cultivar of a wine; of equally many votes the lower number wins."""
    counts = (votes[:, :, None] == np.arange(3)).sum(axis=1)
    winner: Array = counts.argmax(axis=1).astype(np.int64)
    return winner
