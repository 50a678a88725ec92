"""Reports of finished runs: their records as rows, and tables, figures and a page of these."""

from __future__ import annotations

from bdjax.report.rows import *  # noqa: F403
