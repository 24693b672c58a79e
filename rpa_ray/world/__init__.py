"""The embedded world: a fictional language with data sets, tokenizer and exact oracle.

Runs in: driver and learner ranks.
Imports: `data`, `config`; no model code.
Called by: `recipes`, `plan`, `jobs`.
"""
