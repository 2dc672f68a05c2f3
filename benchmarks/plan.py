"""Expanding and planning a matrix: CPU seconds (user and system) of whole processes, and how they grow.

    python benchmarks/plan.py [LARGEST]

A matrix of N runs is N / 20 betas x 2 learning rates x 10 seeds of DPO over 10 SFT steps and one reward model, each
with GEN and EVALREWARD: about 3 N steps. It is planned by `cdpo plan`'s own function, in a process of its own.
"""

import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from _machine import print_machine

PLAN = """
import resource, sys
from pathlib import Path
from cdpo.plan.build import plan_file
plan = plan_file(Path(sys.argv[1]), Path(sys.argv[1]).parent)
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(plan.runs), len(plan.steps), memory // 1024)
"""


def matrix(runs: int) -> str:
    betas = ", ".join(str(round(0.001 * number, 6)) for number in range(1, runs // 20 + 1))
    return f"""\
tag: bench
pipelines: [SFT, RM, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [playground]
seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
tasks:
  - {{pipeline: DPO, beta: [{betas}], learning_rate: [1e-5, 1e-4]}}
"""


def planned(runs: int, folder: Path) -> tuple[float, list[int]]:
    """CPU seconds, and runs, steps, MiB of memory."""
    tasks = folder / "tasks.yaml"
    tasks.write_text(matrix(runs), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", PLAN, str(tasks)], stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, [int(word) for word in done.stdout.split()]


def exponent(points: list[tuple[int, float]]) -> float:
    """The slope of a line through log(seconds) over log(runs), by least squares."""
    x, y = [math.log(runs) for runs, _ in points], [math.log(seconds) for _, seconds in points]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle_x) ** 2 for a in x)


def main(largest: int) -> None:
    print_machine()
    points = []
    with tempfile.TemporaryDirectory() as folder:
        start = min(planned(20, Path(folder))[0] for _ in range(3))
        runs = 1000
        while runs <= largest:
            tries = [planned(runs, Path(folder)) for _ in range(3 if runs < 50_000 else 1)]
            seconds, (count, steps, memory) = min(tries)
            print(f"{count:>7} runs, {steps:>7} steps: {seconds:7.2f} s CPU, {memory} MiB")
            points.append((count, seconds))
            runs *= 10
    # the start of the process is the same for all, and would hide how the planning itself grows
    alone = exponent([(runs, seconds - start) for runs, seconds in points])
    print(f"growth: n^{alone:.2f} without the {start:.2f} s of a start, n^{exponent(points):.2f} with it")
    print("target: at most n^1.1, and 1,000 runs in at most 2 s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
