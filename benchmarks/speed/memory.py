"""Peak memory of a configuration, in a process of its own.

python -m benchmarks.speed.memory mlp 40 alternating
"""

import concurrent.futures
import os
import subprocess
import sys


def peaks(cases):
    """Peak memory of several configurations, each in a process of its own.

    Args:
        cases: List of `(net, number of tasks, name of the configuration)`.

    Returns:
        List of dicts with the key `"bytes"`.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_peak, cases))


def _peak(case):
    net, tasks, name = case
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.speed.memory",
            net,
            str(tasks),
            name,
        ],
        # Where this process found the package, from any folder.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"Memory of {case}: {done.stderr}")
    return {
        "net": net,
        "tasks": tasks,
        "configuration": name,
        "bytes": int(done.stdout.split()[-1]),
    }


def main(net, tasks, name):
    from benchmarks.speed import measure, nets

    before = measure.peak_bytes()
    _, step = nets.build_step(net, nets.configurations(int(tasks))[name])
    for _ in range(3):
        step()
    print(measure.peak_bytes() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
