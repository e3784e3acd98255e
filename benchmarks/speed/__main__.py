"""Command line: measure all parts, each in a process of its own, and report."""

import argparse
import subprocess
import sys

from benchmarks.speed import page

PARTS = ("strategies", "aggregators", "balancers")


def main(arguments=None):
    options = parse(arguments)
    if options.command == "run":
        for part in options.parts:
            # What one part leaves in memory must not slow down the next.
            subprocess.run(
                [
                    *[sys.executable, "-m", f"benchmarks.speed.{part}"],
                    *(["--quick"] if options.quick else []),
                ],
                check=True,
            )
    if getattr(options, "quick", False):
        page.show(page.RESULTS / "quick")
    else:
        page.show(write=options.write)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (
        ("run", "measure, then print the tables"),
        ("table", "print the tables of stored results"),
    ):
        add = commands.add_parser(command, help=about).add_argument
        add("--write", action="store_true", help="into benchmarks/README.md")
        if command == "run":
            add("parts", nargs="*", choices=PARTS, default=PARTS)
            add(
                "--quick",
                action="store_true",
                help="few rounds; the page stays",
            )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
