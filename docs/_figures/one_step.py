"""Draws `images/one_step.png`: what four strategies do with one batch.

python docs/_figures/one_step.py
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

TARGET = Path(__file__).resolve().parents[1] / "images" / "one_step.png"

# Okabe and Ito's colours, as in `mtlkeras.plot`.
COLOURS = {"left": "#56B4E9", "right": "#E69F00", "both": "#CCCCCC"}

# strategy -> boxes in the order of time: (what, whose, width). Widths are those
# of the passes: a backward pass takes about twice a forward pass.
LANES = {
    "joint": [
        ("forward", "both", 1),
        ("balancer", "both", 0.9),
        ("backward", "both", 2),
        ("update", "both", 1),
    ],
    "joint with\nan aggregator": [
        ("forward", "both", 1),
        ("balancer", "both", 0.9),
        ("backward", "left", 2),
        ("backward", "right", 2),
        ("aggregator", "both", 1.1),
        ("update", "both", 1),
    ],
    "multi_adaptive": [
        ("forward", "both", 1),
        ("balancer", "both", 0.9),
        ("backward", "left", 2),
        ("backward", "right", 2),
        ("update", "left", 1),
        ("update", "right", 1),
    ],
    "alternating": [
        (what, task, width)
        for task in ("left", "right")
        for what, width in (
            ("forward", 1),
            ("balancer", 0.9),
            ("backward", 2),
            ("update", 1),
        )
    ],
}


def draw():
    """The figure: time to the right, a lane for each strategy."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.add_subplot()
    for row, (strategy, boxes) in enumerate(LANES.items()):
        start = 0
        for what, whose, width in boxes:
            axes.add_patch(
                FancyBboxPatch(
                    (start + 0.04, -row - 0.3),
                    width - 0.08,
                    0.6,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=COLOURS[whose],
                    # Where an optimizer writes the weights.
                    edgecolor="black" if what == "update" else "none",
                    linewidth=1.5,
                )
            )
            axes.text(
                start + width / 2, -row, what, ha="center", va="center", size=8
            )
            start += width
        axes.text(-0.2, -row, strategy, ha="right", va="center", size=10)
    axes.set_xlim(-1.9, 10)
    axes.set_ylim(-len(LANES) + 0.4, 0.6)
    axes.axis("off")
    axes.legend(
        handles=[
            Patch(facecolor=COLOURS["both"], label="all tasks"),
            Patch(facecolor=COLOURS["left"], label="task left"),
            Patch(facecolor=COLOURS["right"], label="task right"),
            Patch(
                facecolor="white",
                edgecolor="black",
                linewidth=1.5,
                label="writes weights, with optimizer state of that colour",
            ),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    draw().savefig(target, dpi=100, metadata={"Software": None})
