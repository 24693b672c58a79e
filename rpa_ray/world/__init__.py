"""The embedded world: a small fictional language with its data sets, tokenizer and exact oracle.

Nothing is imported here, so that `rpa_ray.world.oracle` costs no tokenizer and no parquet library.
"""
