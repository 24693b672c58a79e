"""What Arrow holds, as rows; Arrow itself looks neither into its texts nor at where they lie."""

from typing import TypeAlias, cast

import pyarrow as pa

_Row: TypeAlias = dict[str, object]


def require_sound(table: pa.Table) -> None:
    """Refuse a table of which a value lies outside its memory: to read it would end the process.

    Bytes that are no text are left to the check of the rows, which names them.

    Raises:
        ValueError: It is damaged; says in which column.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise ValueError(f"column {name!r}: {error}") from error


def rows_of(batch: pa.RecordBatch | pa.Table) -> list[_Row]:
    """Return the rows of an Arrow batch; bytes that are no UTF-8 become halves of characters.

    Arrow does not look into its texts, so that a file may hold any bytes; the check of the rows
    refuses them by number.
    """
    try:
        return cast("list[_Row]", batch.to_pylist())
    except UnicodeDecodeError:
        columns = [[_value(value) for value in column] for column in batch.columns]
        return [
            dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)
        ]


def _value(value: pa.Scalar) -> object:
    if not value.is_valid:
        return None
    match value:
        case pa.DictionaryScalar():
            return _value(value.value)
        case pa.StructScalar():
            return {name: _value(part) for name, part in value.items()}
        case pa.ListScalar():
            return [_value(part) for part in value.values]
        case pa.StringScalar() | pa.StringViewScalar():
            return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        case _:
            return value.as_py()
