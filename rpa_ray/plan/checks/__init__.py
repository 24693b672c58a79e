"""Refuses what cannot be run, in the words of the config, before anything is started."""
