"""One figure per experiment, with matplotlib."""

from pathlib import Path

import numpy as np

from benchmarks.quality import page
from benchmarks.quality.summary import Summary

IMAGES = page.PAGE.parent / "images" / "benchmarks"
NEUTRAL, BETTER, WORSE = "#7f7f7f", "#00798c", "#d1495b"


def draw(configs, folder, output=None):
    """Writes a PNG for every experiment that has results."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    output = Path(output or IMAGES)
    output.mkdir(parents=True, exist_ok=True)
    for config in configs:
        results = page.read_results(config, folder)
        if not results:
            continue
        kind = {"sweep": draw_sweep, "tuned": draw_tuned}[config["protocol"]]
        figure = kind(plt, config, results)
        if figure is None:
            continue
        path = output / f"{config['name']}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        print(f"Wrote {path}")


def draw_sweep(plt, config, results):
    """The cells of the sweep's table as colours, with their numbers."""
    text = page.sweep_table(config, results).split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    heads, rows = lines[0][1:], lines[2:]
    metric = config["table"]["metric"]
    values = np.array(
        [[as_number(cell) for cell in row[1:]] for row in rows], "float64"
    )
    if metric != "solved":
        values = -np.log10(np.maximum(values, 1e-6))
    figure, axes = plt.subplots(
        figsize=(3 + 1.1 * len(heads), 1.2 + 0.22 * len(rows)),
        layout="constrained",
    )
    axes.imshow(values, cmap="YlGnBu", aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for i, row in enumerate(rows):
        for j, cell in enumerate(row[1:]):
            color = "white" if values[i, j] > middle else "black"
            axes.text(j, i, cell, ha="center", va="center", color=color, size=8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], size=8)
    axes.set_xticks(range(len(heads)), heads, size=8, rotation=20, ha="right")
    axes.set_title(
        "starts solved" if metric == "solved" else f"{metric}, worst start",
        size=10,
    )
    return figure


def as_number(cell):
    if cell == "-":
        return float("nan")
    first, _, second = cell.partition("/")
    return float(first) / float(second or 1)


def draw_tuned(plt, config, results):
    """Every seed's delta-m by task, and what the first baseline got."""
    summary = Summary(config, results)
    if config["reference"] not in summary.rows:
        return None
    baseline = config["baselines"][0]
    order = sorted(
        summary.rows, key=lambda m: summary.rows[m]["by_task"].mean()
    )
    figure, axes = plt.subplots(
        figsize=(7.5, 1.2 + 0.21 * len(order)), layout="constrained"
    )
    for place, method in enumerate(order):
        row = summary.rows[method]
        found = row["against"].get(baseline, {}).get("verdict")
        color = {"better": BETTER, "worse": WORSE}.get(found, NEUTRAL)
        values = row["by_task"]
        axes.plot(values, [place] * len(values), "o", ms=4, c=color, alpha=0.5)
        axes.plot(values.mean(), place, "|", c=color, ms=12, mew=2)
    axes.axvline(0, color="black", lw=0.8, ls=":")
    if baseline in summary.rows:
        axes.axvline(summary.rows[baseline]["by_task"].mean(), color=NEUTRAL)
    axes.set_yticks(range(len(order)), order, size=8)
    axes.invert_yaxis()
    axes.set_xlabel("delta-m by task in %, lower is better; dots are seeds")
    axes.set_title(
        f"{config['name']}: blue better, red worse than {baseline} (Holm)",
        size=10,
    )
    axes.grid(axis="x", alpha=0.3)
    return figure
