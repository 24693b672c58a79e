"""Online defences: each constrains every learner step of an attack.

Runs in: learner ranks.
Imports: what `defences` may.
Called by: the table in `defences`.
"""
