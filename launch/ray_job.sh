#!/usr/bin/env bash
# Runs a config on a Ray cluster as `ray job submit` does, and follows it to its end.
#
#   bash launch/ray_job.sh CONFIG [--no-wait] [OPTIONS OF rpa-ray run, campaign, sweep]
#
# CONFIG may be of any kind and lie anywhere. Uploaded are the package, configs/ and the config,
# never other files. Exit status: that of the job; 2 where it was refused before it began.
#
#   RAY_API_SERVER_ADDRESS  the cluster's dashboard, default RAY_ADDRESS where that is http, or
#                           http://127.0.0.1:8265 (a cluster of `ray start --head` on this machine)
#   RPA_RAY_PYTHON          Python on the cluster, default .venv/bin/python of this repository for
#                           a cluster on this machine, else `python`
#   RPA_RAY_CACHE           folder of worlds and models on the cluster, default runs/cache here
#
# Results go to runs/NAME of this repository, or --output. Several machines: on the first
# `ray start --head`, on each other `ray start --address=FIRST:6379`, all with the same
# RAY_AUTH_MODE, RAY_AUTH_TOKEN, Ray, Python and packages (those of launch/install.sh), and with that
# folder and the cache under the same path on each (shared storage). Before anything is started every
# node is asked to read and write both; the job is refused with the address of one that does not.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
for python in "$root/.venv/bin/python" "${RPA_RAY_PYTHON:-python3}"; do
    if "$python" -c 'import ray' 2>/dev/null; then
        # -P: a folder rpa_ray where the caller stands is not the package.
        PYTHONPATH="$root" exec "$python" -P -m rpa_ray.ray_job "$@"
    fi
done
printf 'ray_job.sh: Ray must be installed in %s. Run bash launch/install.sh.\n' "$root/.venv" >&2
exit 2
