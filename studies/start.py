"""Seconds until `import koala_nb` and `koala-nb --help` are done: `python -m studies.start`.

Medians of eleven calls on this machine; the goal is 0.3 s each on an idle one (10 seconds).
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python alone": ["-c", "pass"],
    "import koala_nb": ["-c", "import koala_nb"],
    "koala-nb --help": ["-m", "koala_nb", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Return the seconds of one call of this Python."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    for name, arguments in COMMANDS.items():
        print(f"{name:16} {statistics.median(seconds(arguments) for _ in range(11)):.3f} s")
