"""The standardisation of inputs, made anew on recent rows, for models that carry a scaler instead of batch norm.

It undoes drift that moved and stretched features, such as a sensor that was replaced; whether it helps is for
validation to say. Source of the idea: Li et al. 2017, ICLR workshop (AdaBN), there for the inside of a network.
"""

from __future__ import annotations

import numpy as np

from repair.errors import ParametersDiffer, TruthLacking
from repair.vectors import Array, Parameters

LEAST_ROWS = 20


def restandardised(parameters: Parameters, mean: str, scale: str, rows: Array) -> dict[str, Array]:
    """The parameters with the mean and standard deviation of these rows in the tensors named `mean` and `scale`.

    `rows` has shape (n, n_features); entries that are not finite are left out, and a feature without spread or with
    fewer than `LEAST_ROWS` values keeps what it had. Raises ParametersDiffer where there is no such tensor or it has
    another width, TruthLacking for fewer than `LEAST_ROWS` rows.
    """
    for name in (mean, scale):
        if name not in parameters:
            raise ParametersDiffer(f"the model has no scaler {name!r}.")
        if parameters[name].shape != rows.shape[1:]:
            raise ParametersDiffer(f"the scaler {name!r} is of {parameters[name].shape}, a row of {rows.shape[1:]}.")
    if len(rows) < LEAST_ROWS:
        raise TruthLacking(f"{len(rows)} rows are too few for a scaler; it takes {LEAST_ROWS}.")
    given = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
    n = np.sum(np.isfinite(given), axis=0)
    many = np.maximum(n, 1)
    centre = np.nansum(given, axis=0) / many
    spread = np.sqrt(np.nansum(np.square(given - centre), axis=0) / many)
    known = (n >= LEAST_ROWS) & (spread > 1e-12)
    made = {name: tensor.copy() for name, tensor in parameters.items()}
    made[mean] = np.where(known, centre, parameters[mean]).astype(parameters[mean].dtype)
    made[scale] = np.where(known, spread, parameters[scale]).astype(parameters[scale].dtype)
    return made
