"""Does the test of each promise in SECURITY.md notice its breach? Each is planted in a copy.

python benchmarks/breaches.py              # all, about twenty minutes
python benchmarks/breaches.py token hash   # those whose promise contains a word

It prints the table of the note of the same name. A breach that no test notices is marked.
"""

import sys
from dataclasses import dataclass

from mutants import is_noticed

CLUSTER = "rpa_ray/cluster/private.py"
PRIVATE = "integration/test_private_cluster.py"
DELETED = "rpa_ray/campaign/attacked_weights.py"
CHECKPOINTS = "rpa_ray/learner/checkpoints.py"
TORN = "unit/learner/test_torn_checkpoints.py"
FILES = "rpa_ray/run_folder/files.py"


@dataclass(frozen=True)
class Breach:
    """One promise, a text that breaks it, and the tests that hold it."""

    promise: str
    how: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


BREACHES = (
    Breach(
        "loopback alone",
        "Ray's processes listen on every address",
        CLUSTER,
        '_attribute(ray_constants, "ENABLE_RAY_CLUSTER", False)',
        '_attribute(ray_constants, "ENABLE_RAY_CLUSTER", True)',
        (PRIVATE,),
    ),
    Breach(
        "loopback alone",
        "the ranks meet at a port of torch's store",
        "rpa_ray/campaign/ranks.py",
        "    if cluster_to_join(cluster.address) is not None:\n        return TorchConfig",
        "    if True:\n        return TorchConfig",
        (PRIVATE,),
    ),
    Breach(
        "a token is asked for",
        "none is",
        CLUSTER,
        '"RAY_AUTH_MODE": "token"',
        '"RAY_AUTH_MODE": "disabled"',
        (PRIVATE,),
    ),
    Breach(
        "the token is in no file",
        "the driver notes its environment",
        CLUSTER,
        '        yield {"_temp_dir"',
        '        Path(folder, "note").write_text(os.environ["RAY_AUTH_TOKEN"])\n'
        '        yield {"_temp_dir"',
        (PRIVATE,),
    ),
    Breach(
        "attacked weights are deleted",
        "checkpoints of a finished cell stay",
        DELETED,
        "left[checkpoints] = delete(checkpoints)",
        "left[checkpoints] = None",
        ("unit/campaign/test_attacked_weights.py",),
    ),
    Breach(
        "attacked weights are deleted",
        "a reversed reward model stays in the cache",
        DELETED,
        "left[folder] = _delete_model(folder)",
        "left[folder] = None",
        ("unit/campaign/test_attacked_weights.py",),
    ),
    Breach(
        "attacked weights are deleted",
        "what could not be deleted is not said",
        "rpa_ray/run_folder/deletion.py",
        "return path.resolve() if _parts_of(path) else None",
        "return None",
        ("unit/run_folder/test_deletion.py",),
    ),
    Breach(
        "safetensors, no code of models",
        "weights may be pickles",
        "rpa_ray/defences/online/random_anchor.py",
        "use_safetensors=True",
        "use_safetensors=None",
        ("unit/test_repository.py",),
    ),
    Breach(
        "safetensors, no code of models",
        "a model's own code is run",
        "rpa_ray/jobs/refusals.py",
        "trust_remote_code=False",
        "trust_remote_code=True",
        ("unit/test_repository.py",),
    ),
    Breach(
        "safetensors, no code of models",
        "a tokenizer with code of its own is let through",
        "rpa_ray/plan/checks/models.py",
        "    if tokenizer_class_from_name(name) is None:",
        "    if False:",
        ("unit/plan/checks/test_preflight.py",),
    ),
    Breach(
        "one commit of the Hub",
        "models are named without it",
        "rpa_ray/data/hub_model.py",
        'return f"{repo}@{commit}"',
        "return repo",
        ("unit/data/test_hub_model.py",),
    ),
    Breach(
        "checkpoints of the user alone",
        "one that others own or may write to is read",
        CHECKPOINTS,
        "            _refuse_others(checkpoint)\n",
        "            pass\n",
        (TORN,),
    ),
    Breach(
        "checkpoints are data",
        "a pickle in one is run",
        CHECKPOINTS,
        'rank_{self._ranks.rank}.pt", weights_only=True)',
        'rank_{self._ranks.rank}.pt", weights_only=False)',
        (TORN,),
    ),
    Breach(
        "files are whole or absent",
        "a file is named before it is on disk",
        FILES,
        "            os.fsync(file.fileno())\n        os.replace",
        "        os.replace",
        ("unit/run_folder/test_crash.py",),
    ),
    Breach(
        "files are whole or absent",
        "a file is written in its place",
        FILES,
        "    partial = _unguessable(path)\n    try:",
        "    partial = path\n    path.unlink(missing_ok=True)\n    try:",
        ("unit/run_folder/test_crash.py",),
    ),
    Breach(
        "text is text",
        "answers are markup on the page",
        "rpa_ray/report/answers.py",
        "text = escape(sample.answer) if",
        "text = sample.answer if",
        ("unit/report/test_hostile.py", "unit/report/test_html.py"),
    ),
    Breach(
        "text is text",
        "names are markup in Markdown",
        "rpa_ray/report/escape.py",
        '    return marked.replace("&", "&amp;").replace("<", "&lt;")',
        "    return flat",
        ("unit/report/test_hostile.py",),
    ),
    Breach(
        "text is text",
        "a spreadsheet runs a cell",
        "rpa_ray/report/escape.py",
        '        return f"\'{text}"',
        "        return text",
        ("unit/report/test_hostile.py",),
    ),
    Breach(
        "text is text",
        "a terminal is commanded",
        "rpa_ray/terminal.py",
        'return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)',
        "return text",
        ("unit/report/test_hostile.py", "unit/test_terminal.py"),
    ),
    Breach(
        "a report stays in its folder",
        "files are written through links",
        FILES,
        "    partial = _unguessable(path)\n    try:",
        "    path = partial = path.resolve()\n    path.unlink(missing_ok=True)\n    try:",
        ("unit/report/test_html.py",),
    ),
    Breach(
        "a job uploads package and config alone",
        "the config is not checked before",
        "rpa_ray/ray_job.py",
        "    load_config(config, overrides, scale)\n",
        "",
        ("unit/test_ray_job.py",),
    ),
    Breach(
        "a job uploads package and config alone",
        "large files go along",
        "rpa_ray/ray_job.py",
        "path.stat().st_size > MAX_FILE_BYTES",
        "path.stat().st_size > 2**40",
        ("unit/test_ray_job.py",),
    ),
    Breach(
        "packages by their hash",
        "pip does not ask for it",
        "launch/install.sh",
        "pip_install --require-hashes",
        "pip_install",
        ("unit/test_install.py",),
    ),
)


def main() -> int:
    """Print the table; exit status 1 where a breach goes unnoticed."""
    words = sys.argv[1:]
    chosen = [b for b in BREACHES if not words or any(word in b.promise for word in words)]
    tests = sorted({test for breach in chosen for test in breach.tests})
    if is_noticed(chosen[0].file, chosen[0].right, chosen[0].right, tests):
        sys.exit("the tests fail without a breach, and say nothing about one")
    print("| Promise | Breach | In | Tests | Result |\n| --- | --- | --- | --- | --- |")
    num_unnoticed = 0
    for breach in chosen:
        try:
            noticed = is_noticed(breach.file, breach.right, breach.wrong, breach.tests)
            told = "noticed" if noticed else "UNNOTICED"
        except RuntimeError as error:
            noticed, told = False, str(error)
        num_unnoticed += not noticed
        named = ", ".join(f"`{test}`" for test in breach.tests)
        print(
            f"| {breach.promise} | {breach.how} | `{breach.file}` | {named} | {told} |", flush=True
        )
    print(f"\n{len(chosen) - num_unnoticed} of {len(chosen)} are noticed.")
    return 1 if num_unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
