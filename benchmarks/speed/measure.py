"""Timing by turns, and peak memory, for noisy machines."""

import random
import resource
import statistics
import sys
import time


def timed(function, repetitions=1):
    """Wall and CPU seconds of calling a function a number of times.

    CPU seconds are those of all threads of the process.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repetitions):
        function()
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(steps, seconds, rounds, block_seconds=0.06):
    """Times steps of several configurations by turns.

    In every round each configuration runs one block of steps, all blocks about
    equally long, in an order drawn anew. What else the machine does meanwhile
    then hits all alike, and a ratio can be taken within each round.

    Args:
        steps: Dict from name to a function that runs one step. Already traced
            and run once.
        seconds: About how long to measure in all.
        rounds: `(fewest, most)` rounds, whatever the time says.
        block_seconds: Least duration of a block.

    Returns:
        Dict from name to a list with `(wall, cpu)` seconds per step for every
        round.
    """
    once = {name: timed(step)[0] for name, step in steps.items()}
    longest = min(max(once.values()), 0.5)
    sizes = {
        name: max(1, round(max(block_seconds, longest) / duration))
        for name, duration in once.items()
    }
    # A first round that does not count warms everything up.
    warm_up = sum(timed(step, sizes[name])[0] for name, step in steps.items())
    fewest, most = rounds
    count = min(max(round(seconds / warm_up), fewest), most)
    order, shuffle = list(steps), random.Random(0).shuffle
    times = {name: [] for name in steps}
    for _ in range(count):
        shuffle(order)
        for name in order:
            wall, cpu = timed(steps[name], sizes[name])
            times[name].append((wall / sizes[name], cpu / sizes[name]))
    return times


def compare(times, name, reference):
    """Ratio of a configuration's step to a combination of others.

    Args:
        times: What `take_turns` returned.
        name: The configuration in question.
        reference: List of `(factor, name)`, to be added up.

    Returns:
        Dict with medians in milliseconds, the median of the ratios taken
        within each round with its quartiles, and the ratio of the fastest
        blocks.
    """
    result = {}
    for kind, index in (("wall", 0), ("cpu", 1)):
        own = [time[index] for time in times[name]]
        other = [
            sum(
                factor * time[index]
                for (factor, _), time in zip(reference, row, strict=True)
            )
            for row in zip(*(times[n] for _, n in reference), strict=True)
        ]
        ratios = sorted(a / b for a, b in zip(own, other, strict=True))
        fastest = sum(
            factor * min(time[index] for time in times[n])
            for factor, n in reference
        )
        result[kind] = {
            "ms": 1e3 * statistics.median(own),
            "reference_ms": 1e3 * statistics.median(other),
            "ratio": statistics.median(ratios),
            "quartiles": [
                ratios[len(ratios) // 4],
                ratios[-1 - len(ratios) // 4],
            ],
            "ratio_of_fastest": min(own) / fastest,
        }
    return result


def peak_bytes():
    """Most memory that this process has had resident so far.

    `ru_maxrss` of a child process starts at what its parent had, so Linux's
    own count for this program is preferred; it is the same quantity.
    """
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak():
    """Lets `peak_bytes` count from what is resident now, where Linux can."""
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
    except OSError:
        pass
