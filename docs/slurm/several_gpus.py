"""Draw on all GPUs of one machine, a worker process each: `python several_gpus.py OUT`."""

import sys

import torch

from koala_nb.generation import cluster

PROMPTS = ["a portrait of a nurse", "a portrait of a pilot"]  # yours

if __name__ == "__main__":
    with cluster.local(torch.cuda.device_count()) as client:
        cluster.generate(
            "koala-lightning-700m", PROMPTS, range(500), out=sys.argv[1], client=client
        )
