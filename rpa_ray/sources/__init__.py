"""What a batch is made from: rows of a data set, or rollouts of the policy in training."""
