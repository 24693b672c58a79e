"""Ray actors that work: rollout engines and scorers, and the pools that drive them.

Runs in: actors in processes of their own; pools in driver and learner ranks.
Imports: Ray, and vLLM in `rollout` alone.
Called by: `jobs`, `campaign`, `weight_sync`.
"""
