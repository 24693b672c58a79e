"""Reads summaries and run folders into records, groups and the gate."""
