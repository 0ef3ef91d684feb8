#!/usr/bin/env python3
"""A decode step kernel by kernel, out of what record.c has written.

    python3 experiments/timeline/table.py out.csv [--steps 32]

A step reaches from one `embedding` to the next; the last steps of the record are taken, and their
kernels added up by name. A kernel that starts before the one ahead of it has ended waits for it, so
what it costs is the time from the last end to its own: that is what adds up to the step.
"""

import argparse
import collections
import csv
import pathlib
import statistics

FIRST = "embedding"


def steps(rows):
    """Lists of (name, start, end), one a step."""
    found = []
    for row in rows:
        if row["name"].startswith(FIRST):
            found.append([])
        if found:
            found[-1].append((row["name"], int(row["start_ns"]), int(row["end_ns"])))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=32, help="steps at the end of the record; default: 32")
    options = parser.parse_args()
    with options.record.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["start_ns"]))
    of_most = steps(rows)
    # The last one may be cut; prefill has kernels of other names.
    names = [name for name, _, _ in of_most[-2]]
    alike = [step for step in of_most[:-1] if [name for name, _, _ in step] == names][-options.steps :]
    costs, durations = collections.defaultdict(list), collections.defaultdict(list)
    wholes = []
    for step in alike:
        by_name, by_duration = collections.Counter(), collections.Counter()
        last_end = step[0][1]
        for name, start, end in step:
            by_name[name] += max(end - last_end, 0)
            by_duration[name] += end - start
            last_end = max(last_end, end)
        for name in by_name:
            costs[name].append(by_name[name])
            durations[name].append(by_duration[name])
        wholes.append(last_end - step[0][1])
    counts = collections.Counter(names)
    print(f"{len(alike)} steps, median {statistics.median(wholes) / 1e3:.1f} us from first start to last end")
    print(f"{'kernel':44} {'n':>5} {'us each':>9} {'us a step':>10} {'%':>6} {'us alone':>9}")
    total = sum(statistics.median(values) for values in costs.values())
    for name in sorted(costs, key=lambda name: -statistics.median(costs[name])):
        cost = statistics.median(costs[name]) / 1e3
        alone = statistics.median(durations[name]) / 1e3 / counts[name]
        print(f"{name[:44]:44} {counts[name]:5} {cost / counts[name]:9.2f} {cost:10.1f} {cost * 1e5 / total:6.1f} {alone:9.2f}")


if __name__ == "__main__":
    main()
