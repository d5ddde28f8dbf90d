"""The report of a study: tables, figures and one self-contained page, made of the files of its stages."""

from evaluation.report.page import write

__all__ = ["write"]
