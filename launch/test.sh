#!/usr/bin/env bash
# Installs what is missing, then runs every check of the repository.
#
#   bash launch/test.sh [--slow] [PYTEST ARGUMENTS]
#
# --slow adds the tests marked slow and gpu (gpu ones are skipped where there is no GPU).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest_arguments=()
for argument in "$@"; do
    case "$argument" in
    --slow) pytest_arguments+=(-m "") ;;
    *) pytest_arguments+=("$argument") ;;
    esac
done

bash launch/install.sh
export PATH="$PWD/.venv/bin:$PATH"
printf 'Checking %s\n' "$PWD"
ruff check .
ruff format --check .
mypy
python -m pytest "${pytest_arguments[@]}"
