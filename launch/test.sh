#!/usr/bin/env bash
# Installs what is missing, then runs every check of the repository.
#
#   bash launch/test.sh [--slow] [PYTEST ARGUMENTS]
#
# A path among the arguments runs the tests there alone, in this processor's type of weights.
# --slow adds the tests marked slow and gpu (gpu ones are skipped where there is no GPU).
#
# Where the processor computes bfloat16, what computes with weights runs again in float32, as on a
# processor that does not: the numerics of every method, and of whole runs those marked "computes";
# with --slow every test.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest_arguments=()
marks="not slow and not gpu"
again="computes and "
has_path=0
for argument in "$@"; do
    case "$argument" in
    --slow) marks="" again="" ;;
    *)
        pytest_arguments+=("$argument")
        if [[ -e "${argument%%::*}" ]]; then has_path=1; fi
        ;;
    esac
done

bash launch/install.sh
export PATH="$PWD/.venv/bin:$PATH"
printf 'Checking %s\n' "$PWD"
ruff check .
ruff format --check .
mypy

if [[ $has_path == 1 ]]; then
    exec python -m pytest -m "$marks" "${pytest_arguments[@]}"
fi

# Status 5 says that no test was selected (as by -k): it may be so in some parts, not in all.
selected=0
check() {
    local title="$1" status=0 begun=$SECONDS
    shift
    printf '\n== %s\n' "$title"
    "$@" "${pytest_arguments[@]}" || status=$?
    printf '== %s: %d s\n' "$title" "$((SECONDS - begun))"
    case "$status" in
    0) selected=1 ;;
    5) ;;
    *) failed+=("$title (status $status)") ;;
    esac
}
failed=()

# The small tests share the cores, and so do, two at a time, those that mostly wait for processes.
small=(python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile)
whole=(python -m pytest tests/integration)
in_pairs=(--numprocesses 2 --no-loadscope-reorder)
also="${marks:+ and $marks}"
dtype="$(python -c 'from rpa_ray.cluster.hardware import native_dtype; print(native_dtype(False).dtype)')"
check "small tests, $dtype" "${small[@]}" -m "$marks" tests/unit tests/parity
check "campaigns, $dtype" "${whole[@]}" -m "fills_cores$also"
check "processes, $dtype" "${whole[@]}" "${in_pairs[@]}" -m "not fills_cores$also"
if [[ "$dtype" == bfloat16 ]]; then
    # Read where torch is imported. What these folders compute, the others only hand on.
    export ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
    computing=(tests/parity tests/unit/{ops,attacks,defences,learner,sources,scoring,evaluation})
    check "small tests again, float32" "${small[@]}" -m "$marks" "${computing[@]}"
    check "campaigns again, float32" "${whole[@]}" -m "${again}fills_cores$also"
    check "processes again, float32" "${whole[@]}" "${in_pairs[@]}" \
        -m "${again}not fills_cores$also"
fi
if [[ -z "$marks" ]]; then
    check "on a GPU" python -m pytest -m gpu tests/gpu
fi
if ((${#failed[@]})); then
    printf 'Failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
((selected)) || exit 5
