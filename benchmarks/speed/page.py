"""Tables of results, printed or written into benchmarks/README.md."""

import json
import re
from pathlib import Path

from benchmarks.speed import aggregators, balancers, strategies

PAGE = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "results"
NETS = {"mlp": "MLP", "conv": "conv"}
MOST_TASKS = 40  # the number for which first steps and solvers have targets


def show(folder=RESULTS, write=False):
    """Prints every table; with `write`, puts them between their markers."""
    tables = make_tables(folder)
    for name, table in tables.items():
        print(f"## {name}\n\n{table}")
    if write:
        PAGE.write_text(put_tables(PAGE.read_text(), tables))


def make_tables(folder=RESULTS):
    """Dict from the name of a marker to Markdown."""
    tables = {}
    for part, kinds in (
        ("strategies", strategies_tables),
        ("aggregators", aggregators_tables),
        ("balancers", balancers_tables),
    ):
        path = Path(folder) / f"{part}.json"
        if path.exists():
            report = json.loads(path.read_text())
            tables |= {f"{part} run": origin(part, report)}
            tables |= kinds(report)
    return tables


def put_tables(text, tables):
    """The page with each table between `<!-- table: NAME -->` and its end."""
    for name, table in tables.items():
        block = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            block,
            lambda found, table=table: f"{found[1]}{table}{found[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(
                f"{PAGE} must hold `<!-- table: {name} -->` and `<!-- end -->` "
                f"once. Received: {count} of them."
            )
    return text


def origin(part, report):
    """When, where and with what command a part was measured."""
    return (
        f"`python -m benchmarks.speed run {part}`, {report['date'][:10]}, "
        f"{report['cores']} cores, load {report['load_at_start'][0]} at the "
        f"start,\nPython {report['python']}, Keras {report['keras']}, "
        f"TensorFlow {report['tensorflow']}. Wall time; median over rounds. "
        "Bold: outside of the target.\n"
    )


# -- the parts ----------------------------------------------------------------


def strategies_tables(report):
    ratios = {
        place(row) + (f"`{row['configuration']}`, over {row['against']}",): (
            ratio(row["wall"]["ratio"], limit_of(row["target"]))
        )
        for row in report["rows"]
    }
    first = {
        place(row) + (row["configuration"],): seconds(
            row["first_s"],
            None
            if row["configuration"].startswith("stock")
            else strategies.FIRST_STEP.get(
                row["configuration"], strategies.FIRST_STEP_ELSE
            ),
        )
        for row in report["first_steps"]
        if row["tasks"] == MOST_TASKS
    }
    differs = [s for s in report["slots"] if s["bytes"] != s["predicted_bytes"]]
    slots = f"{len(report['slots'])} configurations, {len(differs)} differ.\n"
    return {
        "strategies": pivot("strategy", ratios),
        "strategies first step": pivot("first step, s", first),
        "strategies memory": memory_table(report),
        "strategies slots": slots,
    }


def limit_of(target):
    """`"0.95"` or `"1.00 +- 0.02"` as the largest ratio that reaches it."""
    return sum(map(float, target.split("+-"))) if target else None


def aggregators_tables(report):
    parameters, features, bare = {}, {}, {}
    for row in report["rows"]:
        name, net = row["configuration"], row["net"]
        if name in (aggregators.PLAIN, aggregators.FLOOR):
            continue
        if "over_bare" in row:
            (where,), at = place(row), name.endswith("at features")
            rule = name.removesuffix(" at features")
            where += ", at features" if at else ""
            bare[where, f"`{rule}`"] = ratio(
                row["over_bare"]["wall"]["ratio"], None
            )
        if name in aggregators.REFERENCES:
            continue
        rule = name.removesuffix(" at features")
        if rule != name:
            found, reference = features, "over_plain"
            limit = aggregators.TARGET[net]
        else:
            found, reference = parameters, "over_floor"
            limit = aggregators.TARGET["parameters"]
            if "," in name:  # for less memory
                limit = None
        found[place(row) + (f"`{rule}`",)] = ratio(
            row[reference]["wall"]["ratio"], limit
        )
    solvers = {
        (f"T = {row['tasks']}", f"`{row['rule']}`"): ratio(
            row["ms"],
            aggregators.SOLVER_TARGET.get(
                row["rule"], aggregators.SOLVER_TARGET_ELSE
            )
            if row["tasks"] == MOST_TASKS
            else None,
        )
        for row in report["solvers"]
    }
    ours = {
        row["configuration"]: row["over_plain"]["wall"]["ratio"]
        for row in report["rows"]
        if (row["net"], row["tasks"]) == ("mlp", MOST_TASKS)
    }
    elsewhere = [["rule", "LibMTL", "TorchJD", "here", "here, at features"]]
    for rule, (libmtl, torchjd) in aggregators.ELSEWHERE.items():
        if rule in ours:
            here = [f"{ours[rule]:.1f}", f"{ours[f'{rule} at features']:.1f}"]
            elsewhere.append([f"`{rule}`", libmtl, torchjd, *here])
    return {
        "aggregators": pivot("over backward passes", parameters),
        "aggregators at features": pivot("over a plain step", features),
        "aggregators over bare": pivot("over bare", bare),
        "aggregators solvers": pivot("solver, ms", solvers),
        "aggregators elsewhere": markdown(elsewhere),
    }


def balancers_tables(report):
    found = {}
    for row in report["rows"]:
        name = row["configuration"]
        limit = balancers.TARGET.get(name, balancers.TARGET_ELSE)
        if name == balancers.JOINT:
            limit = None
        found[place(row) + (f"`{name}`, over {row['reference']}",)] = ratio(
            row["wall"]["ratio"], limit
        )
    return {"balancers": pivot("balancer", found)}


def memory_table(report):
    found = {
        place(row) + (row["configuration"],): f"{row['bytes'] / 2**20:.0f}"
        for row in report["memory"]
    }
    return pivot("peak memory, MB over the imports", found)


# -- cells and tables ---------------------------------------------------------


def place(row):
    return (f"{NETS[row['net']]} T = {row['tasks']}",)


def ratio(value, limit):
    """Two digits, as a reader compares them with the limit; bold if above."""
    text = f"{value:.2f}"
    return text if limit is None or float(text) <= limit else f"**{text}**"


def seconds(value, limit):
    text = f"{value:.1f}"
    return text if limit is None or float(text) <= limit else f"**{text}**"


def pivot(head, cells):
    """A table of `{(column, row): text}`, both in the order they come in."""
    columns = list(dict.fromkeys(column for column, _ in cells))
    rows = list(dict.fromkeys(row for _, row in cells))
    if not cells:
        return "Not measured yet.\n"
    return markdown(
        [
            [head, *columns],
            *(
                [row, *(cells.get((column, row), "") for column in columns)]
                for row in rows
            ),
        ]
    )


def markdown(rows):
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
