"""Moves the policy's weights from the learner's ranks into the engines, and checks it.

Runs in: learner ranks and rollout engines.
Imports: vLLM's weight transfer, Ray's object store.
Called by: `jobs`.
"""
