"""Run records, reports, plots and model cards; and the committed reference results, one folder each.

Works on a record alone and imports nothing else of Sordino, so that a report can be made again anywhere,
years later.
"""

from results.card import model_card
from results.record import Candidate, FrontPoint, Record, read, write
from results.report import render_html, render_markdown, write_reports

__all__ = [
    "Candidate",
    "FrontPoint",
    "Record",
    "model_card",
    "read",
    "render_html",
    "render_markdown",
    "write",
    "write_reports",
]
