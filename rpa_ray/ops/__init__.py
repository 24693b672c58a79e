"""Pure tensor functions: no config, no distributed calls, no I/O.

Runs in: learner ranks.
Imports: torch, and OpenRLHF's losses on first use.
Called by: attacks, defences, evaluation, plugin.
"""
