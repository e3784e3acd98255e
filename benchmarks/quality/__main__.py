"""Command line: run experiments, print tables, draw figures."""

import argparse
from pathlib import Path


def main(arguments=None):
    options = parse(arguments)
    from benchmarks.quality import runner, store
    from benchmarks.quality.experiment import find_configs, read_experiment

    configs = [
        read_experiment(path, options.smoke)
        for path in find_configs(options.configs)
    ]
    folder = options.results
    if folder is None:
        folder = store.SMOKE_RESULTS if options.smoke else store.RESULTS
    if options.command == "run":
        runner.run(
            configs, folder, options.processes, options.methods, options.fresh
        )
    elif options.command == "table":
        from benchmarks.quality import page

        page.show(configs, folder, options.write)
    else:
        from benchmarks.quality import figures

        figures.draw(configs, folder, options.output)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (
        ("run", "compute what is missing"),
        ("table", "print the tables of results"),
        ("plot", "draw the figures of results"),
    ):
        add = commands.add_parser(command, help=about).add_argument
        add(
            "configs",
            nargs="*",
            default=["cpu"],
            metavar="CONFIG",
            help="files, folders or names; all of configs/cpu by default",
        )
        add("--smoke", action="store_true", help="the small version of each")
        add("--results", type=Path, help="folder of the results")
        if command == "run":
            add("--processes", type=int, default=2)
            add("--methods", nargs="+", help="only these")
            add("--fresh", action="store_true", help="drop stored results")
        elif command == "table":
            add("--write", action="store_true", help="into docs/benchmarks.md")
        else:
            add("--output", type=Path, help="folder of the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
