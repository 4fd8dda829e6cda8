"""Seconds that the command line takes to start, cold: a new process each time, torch never imported.

python benchmarks/startup.py [--repeats 7]

Wall time is what a user waits; CPU time does not depend on what else the machine does. See README.md for the method.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

BOUND = 0.3
COMMANDS = (["--help"], ["--version"], ["models"], ["models", "--json"], ["segment", "--help"])


def measure(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print one line for each command; the exit status is 1 when one is slower than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, median of {repeats}")
    print(f"{'command':<26}{'wall s':>8}{'CPU s':>8}")
    slow = False
    for arguments in COMMANDS:
        # What the installed script does, without depending on where it was installed.
        command = [sys.executable, "-c", "import sys; from anysam.cli import main; sys.exit(main())", *arguments]
        measure(command)
        walls, cpus = zip(*(measure(command) for _ in range(repeats)), strict=True)
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        slow = slow or wall > BOUND
        print(
            f"{'anysam ' + ' '.join(arguments):<26}{wall:>8.2f}{cpu:>8.2f}{'  over the bound' if wall > BOUND else ''}"
        )
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
