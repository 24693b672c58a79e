"""One model under DeepSpeed: modules, engine, the optimizer step, checkpoints, folders.

Runs in: learner ranks.
Imports: `plugin`, `types`, DeepSpeed.
Called by: `loop`, `sources`, `jobs`.
"""
