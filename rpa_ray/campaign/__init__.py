"""Many cells on one warm cluster: starts ranks and workers, hands out jobs, writes summaries.

Runs in: driver; `ranks` in the learner ranks, `queue` and `trial` in actors.
Imports: Ray Train and Tune, `plan`, `jobs`.
Called by: `cli`.
"""
