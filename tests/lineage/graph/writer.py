"""A process that adds to a lineage, for tests: `python -m tests.lineage.graph.writer URL chain|left|right N`.

`chain` adds a chain of N versions, and says each number once it is added. `left` and `right` run side by side: both
add versions of their own, versions that they share, and edges that lie across those of the other. Each says how many of
those were refused.
"""

from __future__ import annotations

import sys

from lineage.errors import LineageCycle
from lineage.graph.sql import SqlLineageStore
from tests.lineage.graph.making import edge, version


def main(url: str, what: str, n: int) -> None:
    store = SqlLineageStore(url)
    store.add(version(0))
    if what == "chain":
        for i in range(1, n):
            store.add(version(i), [edge(i - 1, i)])
            print(i, flush=True)
        return
    refused = 0
    for i in range(1, n + 1):
        for name in (f"{what}-own-{i}", f"shared-{i}"):
            store.add(version(name), [edge(0, name)])
        store.add_all([version(f"left-{i}"), version(f"right-{i}")])
        other = "right" if what == "left" else "left"
        try:
            store.link(edge(f"{what}-{i}", f"{other}-{i}"))
        except LineageCycle:
            refused += 1
    print(refused)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
