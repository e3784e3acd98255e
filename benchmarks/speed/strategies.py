"""Step time, first step, memory and slots of every strategy, beside Keras.

    python -m benchmarks.speed.strategies          # about 16 minutes
    python -m benchmarks.speed.strategies --quick  # a few rounds

Prints tables and writes them to a JSON file. `benchmarks/README.md` says how
to read them.
"""

import argparse
import dataclasses
import gc
import time
from pathlib import Path

from benchmarks.speed import memory
from benchmarks.speed.report import (
    describe_run,
    print_memory,
    print_run,
    print_table,
    say,
    write,
)

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Row:
    """What is compared with what.

    Attributes:
        configuration: Name of the configuration in question.
        against: What stands below the fraction line, in words.
        reference: Function from T and K to a list of `(factor, name)`.
        target: The ratio to reach, in words; empty where none was set.
        tasks: Numbers of tasks for which the target holds; empty is all.
    """

    configuration: str
    against: str
    reference: object
    target: str = ""
    tasks: tuple = ()


SINGLE, FORWARD = "stock, one head", "stock, one head, forward"
ROWS = {
    "joint": Row(
        "joint",
        "stock step",
        lambda t, k: [(1, "stock, all heads")],
        "1.00 +- 0.02",
    ),
    "alternating-unfused": Row(
        "alternating, Keras's apply",
        "T x single-task step",
        lambda t, k: [(t, SINGLE)],
        "1.00",
        (8, 40),
    ),
    "alternating": Row(
        "alternating",
        "T x single-task step",
        lambda t, k: [(t, SINGLE)],
        "0.90",
        (8, 40),
    ),
    "grouped": Row(
        "grouped",
        "K x step with T/K heads",
        lambda t, k: [(k, "stock, T/K heads")],
    ),
    "random-groups": Row(
        "random_groups",
        "K x step with T/K heads",
        lambda t, k: [(k, "stock, T/K heads")],
        "0.95",
        (40,),
    ),
    "random-groups-step": Row(
        "random_groups, new each step",
        "K x step with T heads",
        lambda t, k: [(k, "stock, all heads")],
    ),
    "multi-adaptive": Row(
        "multi_adaptive",
        "1 forward + T (backward, apply)",
        lambda t, k: [(t, SINGLE), (1 - t, FORWARD)],
    ),
    "round-robin": Row(
        "round_robin",
        "single-task step",
        lambda t, k: [(1, SINGLE)],
    ),
    "sampled": Row(
        "sampled",
        "single-task step",
        lambda t, k: [(1, SINGLE)],
    ),
    "roaming-alternating": Row(
        "alternating, roaming",
        "alternating",
        lambda t, k: [(1, "alternating")],
        "1.10",
    ),
    "roaming-joint": Row(
        "joint, roaming",
        "alternating",
        lambda t, k: [(1, "alternating")],
        "1.10",
    ),
}
# Seconds that the first step may take at T = 40.
FIRST_STEP = {"round_robin": 10, "sampled": 10}
FIRST_STEP_ELSE = 5
# One process each; the other configurations hold what these hold.
MEMORY = (
    "stock, all heads",
    "joint",
    "alternating",
    "random_groups",
    "multi_adaptive",
    "sampled",
)


def main(arguments=None):
    options = parse(arguments)
    # Imported here: a parent of measuring processes stays small and quick.
    from benchmarks.speed import nets

    started = time.perf_counter()
    report = describe_run(options, ["rows", "first_steps", "slots", "memory"])
    for net in options.nets:
        for tasks in options.tasks:
            say(f"{net}, T = {tasks} ...")
            measured = measure_steps(nets, net, tasks, options)
            for key, entries in measured.items():
                report[key].extend(entries)
            gc.collect()
    # Written before the longest part, which may fail, too.
    write(report, options.output, started)
    if options.memory:
        say("memory ...")
        report["memory"] = memory.peaks(
            (net, tasks, name)
            for net in options.nets
            for tasks in options.tasks
            for name in MEMORY
        )
        write(report, options.output, started)
    print_report(report)
    say(f"Wrote {options.output} after {report['seconds']} s.")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few rounds and no memory")
    add("--tasks", type=int, nargs="+", default=[2, 8, 40])
    add("--nets", nargs="+", choices=["mlp", "conv"], default=["mlp", "conv"])
    add("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    add("--seconds", type=float, help="to measure for each net and T")
    add("--memory", action=argparse.BooleanOptionalAction)
    add("--output", type=Path, help="the JSON file")
    options = parser.parse_args(arguments)
    if options.output is None:
        folder = RESULTS / "quick" if options.quick else RESULTS
        options.output = folder / "strategies.json"
    if options.seconds is None:
        options.seconds = 4.0 if options.quick else 35.0
    if options.memory is None:
        options.memory = not options.quick
    return options


def measure_steps(nets, net, tasks, options):
    """Rows, first steps and slots for one net and one number of tasks."""
    groups = nets.num_groups(tasks)
    rows = {key: ROWS[key] for key in options.rows}
    names = dict.fromkeys(
        name
        for row in rows.values()
        for name in (
            row.configuration,
            *(name for _, name in row.reference(tasks, groups)),
        )
    )
    known = nets.configurations(tasks)
    # What a process does once only belongs to no configuration.
    nets.build_step(net, nets.Configuration(1))[1]()
    steps, first_steps, slots = {}, [], []
    for name in names:
        begin = time.perf_counter()
        model, step = nets.build_step(net, known[name])
        build = time.perf_counter() - begin
        wall, cpu = timed_first(step)
        steps[name] = step
        entry = {"net": net, "tasks": tasks, "configuration": name}
        first_steps.append(
            {**entry, "build_s": build, "first_s": wall, "first_cpu_s": cpu}
        )
        if known[name].does == "train":
            measured, predicted = nets.slot_bytes(model)
            slots.append(
                {**entry, "bytes": measured, "predicted_bytes": predicted}
            )
    results = compare_rows(rows, steps, tasks, groups, options)
    for entry in results:
        entry.update(net=net, tasks=tasks, groups=groups)
    return {"rows": results, "first_steps": first_steps, "slots": slots}


def timed_first(step):
    from benchmarks.speed import measure

    return measure.timed(step)


def compare_rows(rows, steps, tasks, groups, options):
    from benchmarks.speed import measure

    times = measure.take_turns(
        steps, options.seconds, (3, 8) if options.quick else (5, 40)
    )
    results = []
    for key, row in rows.items():
        reference = row.reference(tasks, groups)
        holds = not row.tasks or tasks in row.tasks
        results.append(
            {
                "row": key,
                "configuration": row.configuration,
                "against": row.against,
                "reference": reference,
                "target": row.target if holds else "",
                "rounds": len(times[row.configuration]),
                **measure.compare(times, row.configuration, reference),
            }
        )
    return results


# -- tables -------------------------------------------------------------------


def print_report(report):
    print_run(report)
    table = [
        (
            r["net"],
            r["tasks"],
            r["configuration"],
            r["against"],
            f"{r['wall']['ms']:.1f}",
            f"{r['wall']['reference_ms']:.1f}",
            f"{r['wall']['ratio']:.2f}",
            "{:.2f}-{:.2f}".format(*r["wall"]["quartiles"]),
            f"{r['cpu']['ratio']:.2f}",
            r["target"],
        )
        for r in report["rows"]
    ]
    heads = "net|T|what|against|ms|against ms|ratio|quartiles|CPU|target"
    print_table(heads.split("|"), table)
    table = [
        (
            r["net"],
            r["tasks"],
            r["configuration"],
            f"{r['build_s']:.1f}",
            f"{r['first_s']:.1f}",
            f"{r['first_cpu_s']:.1f}",
            first_step_target(r),
        )
        for r in report["first_steps"]
    ]
    print_table(
        "net|T|what|build s|first step s|CPU s|target".split("|"), table
    )
    table = [
        (
            r["net"],
            r["tasks"],
            r["configuration"],
            f"{r['bytes']:,}",
            f"{r['predicted_bytes']:,}",
            "exact" if r["bytes"] == r["predicted_bytes"] else "DIFFERS",
        )
        for r in report["slots"]
    ]
    print_table("net|T|what|slot bytes|predicted|".split("|"), table)
    print_memory(report)


def first_step_target(entry):
    if entry["tasks"] != 40 or entry["configuration"].startswith("stock"):
        return ""
    return f"{FIRST_STEP.get(entry['configuration'], FIRST_STEP_ELSE)} s"


if __name__ == "__main__":
    main()
