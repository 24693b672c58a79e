import struct

import pyarrow as pa
import pytest

from rpa_ray.data.arrow import require_sound


def texts(*offsets: int, data: bytes = b"abc") -> pa.Array:
    """Return an array of texts that lie between these offsets."""
    packed = pa.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets))
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, packed, pa.py_buffer(data)])


@pytest.mark.parametrize("array", [texts(0, 10**9, 3), texts(0, 3, 1), texts(0, -5, 3)])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_table_that_points_out_of_its_memory_is_refused(array: pa.Array, is_nested: bool) -> None:
    column = pa.StructArray.from_arrays([array], ["inner"]) if is_nested else array
    with pytest.raises(ValueError, match=r"^column 'prompt': "):
        require_sound(pa.table({"prompt": column}))


def test_bytes_that_are_no_text_are_left_to_the_check_of_the_rows() -> None:
    require_sound(pa.table({"prompt": texts(0, 1, 3, data=b"a\xff\xff")}))
