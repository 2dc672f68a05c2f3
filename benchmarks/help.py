"""`cdpo --help` against an empty click program: CPU seconds (user and system) of whole processes, interleaved.

python benchmarks/help.py [ROUNDS]
"""

import resource
import subprocess
import sys
from statistics import median

from _machine import print_machine

EMPTY = """
import click

@click.group()
def cli():
    "Nothing."

@cli.command()
def one():
    "One command."

cli()
"""
PROGRAMS = {
    "empty click program": [sys.executable, "-c", EMPTY, "--help"],
    "cdpo --help": [sys.executable, "-c", "from cdpo.cli import main; main()", "--help"],
    "bare interpreter": [sys.executable, "-c", "pass"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    print_machine()
    for command in PROGRAMS.values():  # compiles what is not compiled yet
        cpu_seconds(command)
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, command in PROGRAMS.items():
            taken[name].append(cpu_seconds(command))
    middle = {name: median(values) for name, values in taken.items()}
    for name, seconds in middle.items():
        print(f"{name:<22} {1000 * seconds:6.1f} ms CPU (median of {rounds}, least {1000 * min(taken[name]):.1f})")
    print(f"ratio {middle['cdpo --help'] / middle['empty click program']:.2f} (target: at most 2)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
