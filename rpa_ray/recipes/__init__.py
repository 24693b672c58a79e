"""What a cell needs, named by its content, before anything is made.

Runs in: driver and learner ranks.
Imports: `data`, `world`, attacks and defences for their needs; no Ray, no transformers.
Called by: `plan`, `jobs`, `campaign`.
"""
