"""One self-contained page on which a person looks through a selection, without a network."""

from toolkit.report.writer import write_report

__all__ = ["write_report"]
