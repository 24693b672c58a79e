"""What learner ranks do: make a model, have refusals written, run an experiment."""
