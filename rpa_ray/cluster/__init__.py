"""Which machines there are, what they compute, and how to reach them.

Runs in: driver.
Imports: `config`, and Ray where a cluster is reached.
Called by: `plan`, `campaign`, `cli`, `ray_job`.
"""
