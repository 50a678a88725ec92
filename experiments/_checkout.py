"""Puts the checkout on Python's path, so that a script runs where bdjax is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
