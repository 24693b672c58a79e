#!/usr/bin/env bash
# Installs what is missing, then runs every check of the repository.
#
#   bash launch/test.sh [--slow] [PYTEST ARGUMENTS]
#
# A path among the arguments runs the tests there alone.
# --slow adds the tests marked slow and gpu (gpu ones are skipped where there is no GPU).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest_arguments=()
has_path=0
for argument in "$@"; do
    case "$argument" in
    --slow) pytest_arguments+=(-m "") ;;
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
    exec python -m pytest "${pytest_arguments[@]}"
fi

# The small tests share the cores; each of the others starts processes enough for all of them.
# Status 5 says that no test was selected (as by -k): it may be so in one half, not in both.
small=0 whole=0
python -m pytest tests/unit tests/parity --numprocesses auto --maxprocesses 4 --dist loadfile \
    "${pytest_arguments[@]}" || small=$?
python -m pytest tests/integration "${pytest_arguments[@]}" || whole=$?
case "$small $whole" in
"0 0" | "0 5" | "5 0") ;;
*) printf 'Failed: status %s of the small tests, %s of the others.\n' "$small" "$whole" >&2 && exit 1 ;;
esac
