"""Metrics of an extension version or a plan, from its outcomes joined with the truth.

outcomes.py     a batch of outcomes, as it comes in
window.py       outcomes remembered by time and segment; what actors keep one of per version and per plan
summary.py      the counts and sums that it remembers
sketch.py       the histogram of latencies
quality.py      the figures that are made of a summary
calibration.py  reliability and the expected calibration error
intervals.py    how sure a figure is
findings.py     which versions do poorly, and why
learner.py      follows the journal and keeps a window per version and plan
busiest.py      which users have figures of their own
"""

from lineage.quality.calibration import Bin, Calibration
from lineage.quality.findings import Finding, Promise, Record, Tolerance, poor
from lineage.quality.intervals import Estimate
from lineage.quality.outcomes import Outcomes
from lineage.quality.quality import ClassQuality, Confusion, Errors, Quality
from lineage.quality.window import QualityWindow

__all__ = [
    "Bin",
    "Calibration",
    "ClassQuality",
    "Confusion",
    "Errors",
    "Estimate",
    "Finding",
    "Outcomes",
    "Promise",
    "Quality",
    "QualityWindow",
    "Record",
    "Tolerance",
    "poor",
]
