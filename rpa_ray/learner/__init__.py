"""The policy learner: models, the DeepSpeed engine, and the one optimizer step."""
