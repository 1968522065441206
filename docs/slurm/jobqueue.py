"""Draw on SLURM, one GPU a job. On the login node: `pip install dask-jobqueue`, then run this."""

import os

from dask_jobqueue import SLURMCluster
from distributed import Client

from koala_nb.generation import cluster

PROMPTS = ["a portrait of a nurse", "a portrait of a pilot"]  # yours
OUT = "/shared/runs/audit"  # a folder that the login node and all GPU nodes see

if __name__ == "__main__":
    jobs = SLURMCluster(
        queue="gpu",  # your partition
        cores=1,
        processes=1,
        memory="32GB",
        walltime="12:00:00",
        job_extra_directives=["--gres=gpu:1"],
        # Certificates of this run alone: nobody else on the network may give the workers work.
        security=True,
        shared_temp_directory=os.path.expanduser("~"),  # a folder that all nodes see
        # The nodes seldom reach the hub: download once, to a cache that all of them see.
        job_script_prologue=["export HF_HOME=/shared/hf", "export HF_HUB_OFFLINE=1"],
    )
    jobs.scale(jobs=8)
    with Client(jobs) as client:
        cluster.generate(
            "koala-lightning-700m", PROMPTS, range(5000), out=OUT, client=client, dtype="float16"
        )
