import os
import subprocess
import sys

import pytest

from rpa_ray.actors.environment import process_environment

FAULTS_OF_TEN_STEPS = """
import resource, torch
def faults():
    for _ in range(10):
        out = torch.ones(2**21, requires_grad=True)
        for _ in range(8):
            out = out * 1.1
        out.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_is_freed_on_a_cpu_is_there_for_the_next_step() -> None:
    on_cpu, on_gpu = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_TEN_STEPS],
                env=os.environ | process_environment(num_threads=1, num_gpus=num_gpus),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for num_gpus in (0, 1)
    )
    assert on_cpu < on_gpu / 20
