"""Tables of results, printed or written into docs/benchmarks.md."""

import itertools
import re
from pathlib import Path

import numpy as np

from benchmarks.quality import evidence, store
from benchmarks.quality.summary import Summary

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MOST_METRICS = 10  # that a table has columns for


def show(configs, folder, write):
    """Prints every table; with `write`, puts them between their markers."""
    tables = make_tables(configs, folder)
    for name, table in tables.items():
        print(f"## {name}\n\n{table}")
    if write:
        PAGE.write_text(put_tables(PAGE.read_text(), tables))


def make_tables(configs, folder):
    """Dict from experiment to Markdown."""
    tables = {}
    for config in configs:
        results = read_results(config, folder)
        tables[config["name"]] = (
            render(config, results)
            if results
            else f"{config['about']}\n\nNo results are stored yet.\n"
        )
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


def read_results(config, folder):
    """Dict from method to result, for what there is."""
    found = {m: store.read(folder, config, m) for m in config["methods"]}
    return {method: result for method, result in found.items() if result}


def render(config, results):
    """The table of an experiment, with a line on where it is from."""
    kind = {"sweep": sweep_table, "tuned": tuned_table}[config["protocol"]]
    return (
        f"{config['about']}\n\n{kind(config, results)}\n{origin(results)}\n"
        f"`python -m benchmarks.quality run {config['name']}`\n"
    )


def origin(results):
    cells = [cell for r in results.values() for cell in r["cells"]]
    versions = cells[0]["versions"]
    dates = sorted(cell["date"][:10] for cell in cells)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} - {dates[-1]}"
    seconds = sum(cell["seconds"] for cell in cells)
    return (
        f"{len(cells)} runs, {seconds / 60:.0f} minutes of processor time, "
        f"{days}, Python {versions['python']}, Keras {versions['keras']}, "
        f"TensorFlow {versions['tensorflow']}, mtlkeras {versions['mtlkeras']}."
    )


def sweep_table(config, results):
    """Methods by the values of the columns, reduced over the rest."""
    metric, keys = config["table"]["metric"], config["table"]["columns"]
    columns = list(itertools.product(*(config["grid"][k] for k in keys)))
    heads = ["method"] + [
        ", ".join(f"{k} {v}" for k, v in zip(keys, column, strict=True))
        for column in columns
    ]
    rows, undefined = [], {}
    for method, result in results.items():
        cells = result["cells"]
        if all(cell["error"] for cell in cells):
            undefined[method] = cells[0]["error"]
            continue
        row = [method]
        for column in columns:
            values = [
                cell["test"].get(metric)
                for cell in cells
                if tuple(cell["setting"][k] for k in keys) == column
            ]
            row.append(reduced(metric, values))
        rows.append(row)
    return markdown(heads, rows) + named_undefined(undefined)


def reduced(metric, values):
    """How many of the starts are solved, or the worst value of them."""
    if not values or None in values:
        return "-"
    if metric == "solved":
        return f"{sum(map(int, values))}/{len(values)}"
    worst = max(values)
    return f"{worst:.2g}" if worst > 5e-7 else "0"


def tuned_table(config, results):
    summary = Summary(config, results)
    if config["reference"] not in summary.rows:
        return (
            f"No results of the reference, `{config['reference']}`, yet: "
            f"{len(summary.rows)} methods are done.\n"
        )
    baselines = [b for b in config["baselines"] if b in summary.rows]
    heads = ["method", "dm by task", "dm by metric", "in equal seconds"]
    heads += ["mean rank"]
    metrics = list(summary.directions)
    metrics = metrics if len(metrics) <= MOST_METRICS else []
    heads += metrics
    heads += [f"against {baseline} (p)" for baseline in baselines]
    heads += ["s per run", "steps", "peak MB"]
    rows = [
        tuned_row(method, summary.rows[method], metrics, baselines)
        for method in summary.order()
    ]
    text = markdown(heads, rows)
    shortest = 2 / 2 ** config["seeds"]
    text += (
        f"\n{config['trials']} trials and {config['seeds']} seeds per method. "
        "dm: mean change of the metrics against one network per task in %, "
        "negative is better, ± half of the 95 % interval over seeds. p: paired "
        "t-test of dm by task after Holm; Wilcoxon's test alone could not be "
        f"below {shortest:.3f}. Friedman's test that all methods rank alike: "
        f"p = {summary.friedman():.2g}.\n"
    )
    if summary.unfinished:
        text += f"\nNot finished: {', '.join(summary.unfinished)}.\n"
    return text + named_undefined(summary.undefined)


def tuned_row(method, row, metrics, baselines):
    cells = [method, plus_minus(row["by_task"]), plus_minus(row["by_metric"])]
    within = row["by_seconds"]
    cells.append("-" if within is None else f"{np.mean(within):.1f}")
    cells.append(f"{row['rank']:.1f}")
    cells += [f"{row['values'][name].mean():.4f}" for name in metrics]
    for baseline in baselines:
        found = row["against"].get(baseline)
        if found is None:
            cells.append("-")
        else:
            p = found["corrected"]
            p = "-" if p is None else f"{p:.2g}"
            cells.append(f"{found['verdict']} ({p})")
    return cells + [
        f"{row['training_seconds']:.1f}",
        f"{row['steps']:.0f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
    ]


def plus_minus(values):
    mean, half = evidence.interval(values)
    return f"{mean:.1f} ± {half:.1f}"


def named_undefined(undefined):
    if not undefined:
        return ""
    lines = [f"- {m}: {reason}" for m, reason in undefined.items()]
    return "\nUndefined here:\n\n" + "\n".join(lines) + "\n"


def markdown(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
