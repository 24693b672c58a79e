"""Pure tensor functions: no config, no distributed calls, no I/O.

Losses come from OpenRLHF where it computes exactly what is meant, and are loaded on first use.
"""
