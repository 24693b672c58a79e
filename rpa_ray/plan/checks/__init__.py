"""Refuses what cannot be run, in the words of the config, before anything is started.

Runs in: driver.
Imports: what `plan` may.
Called by: `plan`, `cli`.
"""
