"""Moves the policy's weights from the learner's ranks into the rollout engines, and checks it."""
