"""Ray actors around the learner: rollout engines, scorers, and the pools that drive them."""
