"""Whether pruning pays: runs of selectors, fractions and seeds, their results in files, statistics and a page."""

from toolkit.comparison.energy import EnergyMeter
from toolkit.comparison.page import write_page
from toolkit.comparison.pictures import plot_comparison
from toolkit.comparison.plan import Plan, Run
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import Estimate, Summary, estimate, summarise_runs
from toolkit.comparison.storage import BusyFolderError, Results

__all__ = [
    "BusyFolderError",
    "EnergyMeter",
    "Estimate",
    "Plan",
    "Published",
    "Results",
    "Run",
    "Summary",
    "estimate",
    "plot_comparison",
    "summarise_runs",
    "write_page",
]
