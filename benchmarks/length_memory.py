"""Print what a process holds after many training steps on texts of one length, and of many.

python benchmarks/length_memory.py MODEL_FOLDER [--steps 2000]

Forward and backward of a model on a CPU, bfloat16, one thread, each way in a process of its own.
What grows with the steps at one length would be a leak; what grows with the lengths are kernels.
"""

import argparse
import ctypes
import os
import random
import subprocess
import sys
from pathlib import Path

ROWS, LENGTH, SPREAD = 4, 45, 8
"""Rows of a batch, and mean and deviation of its length in tokens."""
NUM_LINES = 4
WAYS = {"one length": {}, "many lengths": {}, "many, 8 kernels kept": {"CAPACITY": "8"}}


class _Malloc(ctypes.Structure):
    """The ``mallinfo2`` of glibc."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a causal language model")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        train(options.model, options.steps, options.way)
        return
    print("| texts | steps | lengths | MiB of its own | MiB that C code asked for |")
    print("| --- | --: | --: | --: | --: |", flush=True)
    for way, settings in WAYS.items():
        added = {f"ONEDNN_PRIMITIVE_CACHE_{name}": value for name, value in settings.items()}
        command = [sys.executable, __file__, str(options.model), "--steps", str(options.steps)]
        subprocess.run([*command, "--way", way], env={**os.environ, **added}, check=True)


def train(folder: Path, num_steps: int, way: str) -> None:
    """Train for some steps, and print a line now and then."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False
    )
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Malloc
    rng, seen = random.Random(0), set()
    for step in range(1, num_steps + 1):
        length = LENGTH if way == "one length" else max(8, round(rng.gauss(LENGTH, SPREAD)))
        seen.add(length)
        ids = torch.randint(model.config.vocab_size, (ROWS, length))
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()
        if step % (num_steps // NUM_LINES) == 0:
            asked = libc.mallinfo2().uordblks / 2**20
            print(f"| {way} | {step:,} | {len(seen)} | {own_mib():.0f} | {asked:.0f} |", flush=True)


def own_mib() -> float:
    """Return the memory of this process that is not shared."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
