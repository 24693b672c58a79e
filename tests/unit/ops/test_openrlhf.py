import subprocess
import sys

from rpa_ray.ops.openrlhf import openrlhf_kl_controllers, openrlhf_losses

IN_A_FRESH_PROCESS = """
import importlib.util, sys
import rpa_ray.ops.advantages, rpa_ray.ops.kl, rpa_ray.ops.losses
heavy = {"openrlhf", "deepspeed", "transformers", "ray", "vllm", "peft"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from rpa_ray.ops.openrlhf import openrlhf_kl_controllers, openrlhf_losses
assert openrlhf_losses().PolicyLoss and openrlhf_kl_controllers().AdaptiveKLController
assert "openrlhf.models" not in sys.modules and "openrlhf.trainer.ppo_utils" not in sys.modules
assert not {"ray", "vllm", "peft", "flash_attn"} & set(sys.modules)
"""


def test_openrlhf_is_imported_on_first_use_and_leaves_no_stand_in_behind() -> None:
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], check=True)


def test_the_import_happens_once() -> None:
    assert openrlhf_losses() is openrlhf_losses()
    assert openrlhf_kl_controllers() is openrlhf_kl_controllers()
