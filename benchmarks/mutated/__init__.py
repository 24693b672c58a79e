"""Mutants of what a user writes or brings: configs, data files and model folders.

Each module has ``KINDS``, the names of its mutations, and makes a mutant of a kind by a seed.
"""
