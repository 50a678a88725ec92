"""What these benchmarks share besides `bdjax.bench.measure`: their options, and JSON with the machine's name on it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from bdjax.bench import measure
from bdjax.devices import environment
from bdjax.files import atomic


def arguments(description: str | None, **options: Any) -> argparse.Namespace:
    """Read ``--out FILE`` and the given options (name: default); a tuple default takes several numbers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, help="write the JSON to this file instead of printing it"
    )
    for name, default in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, tuple):
            parser.add_argument(flag, type=type(default[0]), nargs="+", default=list(default))
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def write(results: dict[str, Any], out: Path | None) -> None:
    """Write the results with date, machine and versions."""
    date, machine, versions = time.strftime("%Y-%m-%d"), measure.machine(), environment.versions()
    content = {"date": date, "machine": machine, "versions": versions, **results}
    text = json.dumps(content, indent=1)
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(out, text + "\n")
