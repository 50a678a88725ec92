"""``python -m bdjax`` is the console script."""

import sys

from bdjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
