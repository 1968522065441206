"""Draw with the workers of a scheduler that is running: `python draw.py scheduler.json OUT`."""

import sys

from distributed import Client

from koala_nb.generation import cluster

PROMPTS = ["a portrait of a nurse", "a portrait of a pilot"]  # yours

if __name__ == "__main__":
    with Client(scheduler_file=sys.argv[1]) as client:
        cluster.generate(
            "koala-lightning-700m", PROMPTS, range(5000), out=sys.argv[2], client=client
        )
