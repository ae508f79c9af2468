"""Whether what a model sees, says and believes is still what it was trained on, from sketches instead of rows.

A `Reference` is learned from the training rows and kept with the lineage. Beside each replica a `Gatherer` counts rows
and sends panes; a `Monitor` puts the panes of all replicas together to windows and makes a `DriftReport` of each.
Deciding is pure: times, randomness and rows are arguments.

columns.py      tensors as columns of numbers and categories
reference.py    what is kept of the training rows
bins.py         the bins that they fix
joint.py        directions through all columns at once, watched like columns
sketches.py     what is kept of live rows: counts and quantile sketches, mergeable
categories.py   counts of categories, and of those never seen
packing.py      arrays as bytes and back
gathering.py    rows taken on the request's path and counted off it
windows.py      panes of many replicas put together by rows or by time
statistics.py   PSI, Kullback-Leibler, Jensen-Shannon, Kolmogorov-Smirnov, Wasserstein
thresholds.py   what is more than chance, for any window size and number of columns
novelty.py      how surprising it is that something new occurs so often
judge.py        makes the report of a window
report.py       the report: nouns, sentences, JSON
nearness.py     how far live rows are from the training rows of another version
monitor.py      follows one model version, from panes to reports
estimates.py    accuracy without labels: CBPE and ATC
error_watch.py  errors where truth arrives: ADWIN and Page-Hinkley
plots.py        pictures

What a replica needs is named here, and imports numpy and datasketches alone; the rest is imported from its files.
"""

from lineage.drift.columns import Column, Layout, Rows, layout_of
from lineage.drift.gathering import Gatherer
from lineage.drift.reference import Reference, learn
from lineage.drift.sketches import BinsDiffer, Sketch
from lineage.drift.windows import Pane, WindowSettings

__all__ = [
    "BinsDiffer",
    "Column",
    "Gatherer",
    "Layout",
    "Pane",
    "Reference",
    "Rows",
    "Sketch",
    "WindowSettings",
    "layout_of",
    "learn",
]
