"""What a run says of itself, its JSON file and its tables."""

import datetime
import json
import os
import platform
import sys
import time


def describe_run(options, parts):
    """What a reader has to know of a run, and an empty list for each part."""
    import keras
    import tensorflow as tf

    import mtlkeras

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        ),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        # Well below the number of cores: the machine was quiet.
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "mtlkeras": mtlkeras.__version__,
        "quick": options.quick,
        **{part: [] for part in parts},
    }


def write(report, path, started):
    """Writes a report with the seconds since `started`."""
    report["seconds"] = round(time.perf_counter() - started)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def print_run(report):
    """When and where a report was measured."""
    print(
        f"\n{report['date']}, {report['cores']} cores, load "
        f"{report['load_at_start'][0]}, Python {report['python']}, Keras "
        f"{report['keras']}, TensorFlow {report['tensorflow']}, mtlkeras "
        f"{report['mtlkeras']}\n"
    )


def print_memory(report):
    """The table of peaks, if they were measured."""
    table = [
        (r["net"], r["tasks"], r["configuration"], f"{r['bytes'] / 2**20:.0f}")
        for r in report["memory"]
    ]
    if table:
        print_table("net|T|what|peak MB over import".split("|"), table)


def print_table(heads, rows):
    """A table that is also Markdown."""
    rows = [[str(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        cells = [c.ljust(w) for c, w in zip(row, widths, strict=True)]
        print("| " + " | ".join(cells) + " |")
    print()


def say(text):
    print(text, file=sys.stderr, flush=True)
