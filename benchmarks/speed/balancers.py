"""Step time of every balancer, beside the plain joint step.

    python -m benchmarks.speed.balancers          # about 6 minutes
    python -m benchmarks.speed.balancers --quick  # a few rounds

Prints tables and writes them to a JSON file. `benchmarks/README.md` says how
to read them.
"""

import argparse
import gc
import time
from pathlib import Path

from benchmarks.speed.report import (
    describe_run,
    print_run,
    print_table,
    say,
    write,
)

RESULTS = Path(__file__).parent / "results"
STOCK, JOINT, FORWARD = "stock, all heads", "joint", "forward"
SAME_BATCH = "famo, same batch"
LAST_LAYER = "gradnorm, last shared layer"
# What a step may take over the reference, where something was set.
TARGET = {"gradnorm": 1.10, LAST_LAYER: None}
TARGET_ELSE = 1.03


def main(arguments=None):
    options = parse(arguments)
    from benchmarks.speed import nets

    started = time.perf_counter()
    report = describe_run(options, ["rows", "first_steps"])
    for net in options.nets:
        for tasks in options.tasks:
            say(f"{net}, T = {tasks} ...")
            measured = measure_steps(nets, net, tasks, options)
            for key, entries in measured.items():
                report[key] += entries
            write(report, options.output, started)
            gc.collect()
    print_report(report)
    say(f"Wrote {options.output} after {report['seconds']} s.")


def parse(arguments):
    import mtlkeras

    every = [*mtlkeras.balancers.ids(), SAME_BATCH, LAST_LAYER]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few rounds")
    add("--tasks", type=int, nargs="+", default=[8, 40])
    add("--nets", nargs="+", choices=["mlp", "conv"], default=["mlp", "conv"])
    add("--rules", nargs="+", choices=every, default=every)
    add("--seconds", type=float, help="to measure for each net and T")
    add("--output", type=Path, help="the JSON file")
    options = parser.parse_args(arguments)
    if options.output is None:
        folder = RESULTS / "quick" if options.quick else RESULTS
        options.output = folder / "balancers.json"
    if options.seconds is None:
        options.seconds = 4.0 if options.quick else 60.0
    return options


def measure_steps(nets, net, tasks, options):
    """Step times and first steps for one net and one number of tasks."""
    from benchmarks.speed import measure

    known = nets.configurations(tasks)
    # What a process does once only belongs to no configuration.
    nets.build_step(net, nets.Configuration(1))[1]()
    steps, first_steps = {}, []
    for name in [STOCK, FORWARD, JOINT, *options.rules]:
        _, step = nets.build_step(net, known[name])
        wall, cpu = measure.timed(step)
        steps[name] = step
        first_steps.append(
            {
                "net": net,
                "tasks": tasks,
                "configuration": name,
                "first_s": wall,
                "first_cpu_s": cpu,
            }
        )
    times = measure.take_turns(
        steps, options.seconds, (3, 5) if options.quick else (8, 40)
    )
    rows = []
    for name in [JOINT, *options.rules]:
        reference = [(1, STOCK if name == JOINT else JOINT)]
        if name == SAME_BATCH:
            reference.append((1, FORWARD))
        rows.append(
            {
                "net": net,
                "tasks": tasks,
                "configuration": name,
                "reference": " + ".join(n for _, n in reference),
                "rounds": len(times[name]),
                **measure.compare(times, name, reference),
                "over_stock": measure.compare(times, name, [(1, STOCK)]),
            }
        )
    return {"rows": rows, "first_steps": first_steps}


def print_report(report):
    print_run(report)
    table = []
    for row in report["rows"]:
        target = TARGET.get(row["configuration"], TARGET_ELSE)
        if row["configuration"] == JOINT or target is None:
            target = ""
        table.append(
            (
                row["net"],
                row["tasks"],
                row["configuration"],
                row["reference"],
                f"{row['wall']['ms']:.2f}",
                f"{row['wall']['ratio']:.2f}",
                "{:.2f}-{:.2f}".format(*row["wall"]["quartiles"]),
                target,
                f"{row['over_stock']['wall']['ratio']:.2f}",
            )
        )
    heads = "net|T|what|over|ms|ratio|quartiles|target|over stock"
    print_table(heads.split("|"), table)
    table = [
        (
            r["net"],
            r["tasks"],
            r["configuration"],
            f"{r['first_s']:.1f}",
            f"{r['first_cpu_s']:.1f}",
        )
        for r in report["first_steps"]
    ]
    print_table("net|T|what|first step s|CPU s".split("|"), table)


if __name__ == "__main__":
    main()
