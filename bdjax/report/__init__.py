"""Reports of finished runs: their records as rows, and tables, figures and a page of these."""

from __future__ import annotations

from bdjax.report.labels import count as count
from bdjax.report.records import Record as Record
from bdjax.report.records import distinct as distinct
from bdjax.report.records import load as load
from bdjax.report.rows import Row as Row
from bdjax.report.rows import summarize as summarize
from bdjax.report.rows import victims as victims
from bdjax.report.standing import best as best
from bdjax.report.standing import notes as notes
from bdjax.report.standing import runners_up as runners_up
