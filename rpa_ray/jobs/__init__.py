"""What learner ranks do: make a model, have refusals written, run an experiment.

Runs in: learner ranks.
Imports: everything below; the pools of `actors` by handles.
Called by: `campaign.ranks`.
"""
