"""Processes of tests that are forked where everything is imported already, which saves seconds for each of them."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "tests.aimass.command_process",
        "tests.trainer.jobs.process",
        "tests.trainer.distributed.data_parallel_process",
        "tests.trainer.distributed.local_steps_process",
    ]
)
