"""What the sizes of a scoring model decide; told without a large import."""

LARGE_PARAMETERS = 10**9
"""More parameters than these a GPU holds in bfloat16."""


def bytes_a_weight(num_parameters: int, *, on_gpu: bool) -> int:
    """Return 4 for fp32, or 2 for bfloat16.

    In fp32 a score does not depend on how rows are put into batches. Of a cost model of 7B
    parameters that is 25 GiB of a GPU, which bfloat16 halves.
    """
    return 2 if on_gpu and num_parameters > LARGE_PARAMETERS else 4


POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions")
"""What transformers calls a table of learned positions, beyond whose end no text is read.

Models without one read on: rotary and relative positions (Llama, DeBERTa) are computed."""
