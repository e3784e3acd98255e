"""Step time of every aggregator, beside plain steps and bare backward passes.

    python -m benchmarks.speed.aggregators          # about 25 minutes
    python -m benchmarks.speed.aggregators --quick  # a few rounds, no memory

Prints tables and writes them to a JSON file. `benchmarks/README.md` says how
to read them.
"""

import argparse
import gc
import statistics
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
PLAIN, FLOOR = "stock, all heads", "forward, T backward"
# What any rule has to do, in bare TensorFlow.
BARE, BARE_AT_FEATURES = "bare", "bare at features"
REFERENCES = [PLAIN, FLOOR, BARE, BARE_AT_FEATURES]
# Plain steps that a step takes elsewhere on the MLP at T = 40, on two cores:
# LibMTL (main, May 2025) and TorchJD 0.18.0 under PyTorch on the CPU.
ELSEWHERE = {
    "pcgrad": (107, 21),
    "mgda": (37, 15),
    "cagrad": (38, 18),
    "nash_mtl": (37, 31),
    "upgrad": (28, 16),
}
# Of steps over backward passes, over plain steps at features, and seconds.
TARGET = {"parameters": 1.10, "mlp": 1.2, "conv": 1.05, "first_step": 5}
SOLVER_TARGET = {"upgrad": 15.0}
SOLVER_TARGET_ELSE = 2.0
MEMORY = (
    PLAIN,
    FLOOR,
    "upgrad",
    "upgrad, low memory",
    "upgrad at features",
    "graddrop",
)


def main(arguments=None):
    options = parse(arguments)
    # Imported here: a parent of measuring processes stays small and quick.
    from benchmarks.speed import nets

    started = time.perf_counter()
    parts = ["rows", "first_steps", "solvers", "memory"]
    report = describe_run(options, parts)
    for tasks in options.tasks:
        say(f"solvers, T = {tasks} ...")
        report["solvers"] += measure_solvers(tasks, options)
        write(report, options.output, started)
    for net in options.nets:
        for tasks in options.tasks:
            say(f"{net}, T = {tasks} ...")
            measured = measure_steps(nets, net, tasks, options)
            for key, entries in measured.items():
                report[key] += entries
            write(report, options.output, started)
            gc.collect()
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
    import mtlkeras

    ids = mtlkeras.aggregators.ids()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few rounds and no memory")
    add("--tasks", type=int, nargs="+", default=[2, 8, 40])
    add("--nets", nargs="*", choices=["mlp", "conv"], default=["mlp", "conv"])
    add("--rules", nargs="+", choices=ids, default=ids)
    add("--seconds", type=float, help="to measure for each net and T")
    add("--memory", action=argparse.BooleanOptionalAction)
    add("--output", type=Path, help="the JSON file")
    options = parser.parse_args(arguments)
    if options.output is None:
        folder = RESULTS / "quick" if options.quick else RESULTS
        options.output = folder / "aggregators.json"
    if options.seconds is None:
        options.seconds = 4.0 if options.quick else 60.0
    if options.memory is None:
        options.memory = not options.quick
    return options


# -- steps --------------------------------------------------------------------


def measure_steps(nets, net, tasks, options):
    """Step times and first steps for one net and one number of tasks."""
    from benchmarks.speed import measure

    known = nets.configurations(tasks)
    ours = [
        name
        for rule in options.rules
        for name in (rule + suffix for suffix in nets.AGGREGATOR_MODES)
        if name in known
        # A second backward pass costs every rule the same.
        and (not name.endswith(nets.LOW_MEMORY) or rule == "upgrad")
    ]
    # What a process does once only belongs to no configuration.
    nets.build_step(net, nets.Configuration(1))[1]()
    steps, first_steps = {}, []
    for name in [*REFERENCES, *ours]:
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
        steps, options.seconds, (3, 5) if options.quick else (5, 30)
    )
    rows = [
        {
            "net": net,
            "tasks": tasks,
            "configuration": name,
            "rounds": len(times[name]),
            "over_plain": measure.compare(times, name, [(1, PLAIN)]),
            "over_floor": measure.compare(times, name, [(1, FLOOR)]),
            "over_bare": measure.compare(times, name, [(1, bare_for(name))]),
        }
        for name in [*REFERENCES, *ours]
    ]
    return {"rows": rows, "first_steps": first_steps}


def bare_for(name):
    return BARE_AT_FEATURES if name.endswith("at features") else BARE


# -- solvers ------------------------------------------------------------------


def measure_solvers(tasks, options):
    """Milliseconds that rules need for `task_weights` from a Gramian.

    The matrices are Gramians of random gradients with 50 coordinates: half of
    all pairs conflict. Rules that need the gradients themselves have no solver
    of this kind.
    """
    import numpy as np
    import tensorflow as tf

    import mtlkeras

    def compiled(function):
        return tf.function(function, autograph=False, jit_compile=True)

    generator = np.random.default_rng(0)
    gramians, losses = [], tf.ones([tasks])
    for _ in range(20):
        jacobian = generator.normal(size=(tasks, 50)).astype("float32")
        gramians.append(tf.constant(jacobian @ jacobian.T))
    found = []
    for id in options.rules:
        rule = mtlkeras.aggregators.get(id)
        if rule.needs_rows:
            continue
        rule.ensure_built(tasks)
        # As the training step does it.
        rule.compile_solver(compiled)
        solve = tf.function(rule.weigh, autograph=False)
        live = tf.fill([tasks], True)
        solve(gramians[0], losses, live)
        seconds = []
        for _ in range(3 if options.quick else 10):
            for gramian in gramians:
                start = time.perf_counter()
                solve(gramian, losses, live).numpy()
                seconds.append(time.perf_counter() - start)
        found.append(
            {
                "tasks": tasks,
                "rule": id,
                "ms": 1e3 * statistics.median(seconds),
                "slowest_ms": 1e3 * max(seconds),
            }
        )
    return found


# -- tables -------------------------------------------------------------------


def print_report(report):
    print_run(report)
    table = []
    for row in report["rows"]:
        name, net = row["configuration"], row["net"]
        wall = row["over_plain"]["wall"]
        if name in REFERENCES:
            target = ""
        elif name.endswith("at features"):
            target = f"{TARGET[net]} x plain"
        else:
            target = f"{TARGET['parameters']} x floor"
        elsewhere = (
            ELSEWHERE.get(name)
            if (net, row["tasks"])
            == (
                "mlp",
                40,
            )
            else None
        )
        table.append(
            (
                net,
                row["tasks"],
                name,
                f"{wall['ms']:.1f}",
                f"{wall['ratio']:.2f}",
                f"{row['over_floor']['wall']['ratio']:.2f}",
                f"{row['over_bare']['wall']['ratio']:.2f}",
                "{:.2f}-{:.2f}".format(*row["over_bare"]["wall"]["quartiles"]),
                target,
                "{} / {}".format(*elsewhere) if elsewhere else "",
            )
        )
    heads = "net|T|what|ms|over plain|over floor|over bare|quartiles|target"
    print_table([*heads.split("|"), "LibMTL / TorchJD over plain"], table)
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
    table = [
        (
            r["tasks"],
            r["rule"],
            f"{r['ms']:.2f}",
            f"{r['slowest_ms']:.2f}",
            f"{SOLVER_TARGET.get(r['rule'], SOLVER_TARGET_ELSE)} ms",
        )
        for r in report["solvers"]
    ]
    print_table("T|solver|ms|slowest ms|target".split("|"), table)
    print_memory(report)


if __name__ == "__main__":
    main()
