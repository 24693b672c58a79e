#!/usr/bin/env bash
# Installs what is missing, then breaks the embedded chat model with an attack, once undefended and
# once defended, and ends with a table and the path of the report.
#
#   bash launch/quickstart.sh [OPTIONS OF rpa-ray campaign]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
printf 'Running configs/quickstart.yaml in %s, results in runs/quickstart/\n' "$PWD"
exec .venv/bin/rpa-ray campaign configs/quickstart.yaml "$@"
