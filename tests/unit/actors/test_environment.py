import os
import resource
import subprocess
import sys

import pytest

from rpa_ray.actors.environment import process_environment

BLOCK_BYTES = 8 * 2**20
FAULTS_OF_FORTY_STEPS = """
import resource, torch
def faults():
    for _ in range(40):
        out = torch.ones(2**21, requires_grad=True)
        for _ in range(8):
            out = out * 1.1
        out.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""
"""Each step takes more than ten blocks and frees them all."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_is_freed_on_a_cpu_is_there_for_the_next_step() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_FORTY_STEPS],
        env=os.environ | process_environment(num_threads=1, has_gpu=False),
        capture_output=True,
        text=True,
        check=True,
    )
    # Some blocks of the first steps are new; they take more than four hundred.
    assert int(run.stdout) < 10 * BLOCK_BYTES / resource.getpagesize()


def test_the_memory_of_processes_on_a_gpu_is_left_to_the_system() -> None:
    assert process_environment(num_threads=3, has_gpu=True) == {"OMP_NUM_THREADS": "3"}
