"""Arrays of every Open Inference datatype, for hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.features import DATATYPES, Array

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def _texts(utf8: bool) -> st.SearchStrategy[bytes]:
    return st.text(max_size=6).map(str.encode) if utf8 else st.binary(max_size=6)


@st.composite
def arrays(draw: st.DrawFn, datatype: str, utf8: bool = False) -> Array:
    """A finite array of at least one row; BYTES hold UTF-8 only if asked for."""
    shape = draw(SHAPES)
    dtype: np.dtype[Any] = DATATYPES[datatype]
    if datatype == "BYTES":
        n_elements = int(np.prod(shape))
        flat = np.empty(n_elements, object)
        flat[:] = draw(st.lists(_texts(utf8), min_size=n_elements, max_size=n_elements))
        return flat.reshape(shape)
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))


def same(a: Array, b: Array) -> bool:
    """Whether two arrays agree in dtype, shape and every element."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
