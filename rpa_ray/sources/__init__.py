"""What a batch is made from: rows of a data set, or rollouts of the policy in training.

Runs in: learner ranks.
Imports: `learner`, `plugin`, `data`.
Called by: `jobs`.
"""
