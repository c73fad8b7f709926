"""The one clip schema: what the catalog makes of any table, and the plan stores."""

import pyarrow as pa

# Times are integer milliseconds; null start = from the beginning, null end = to the end of the file.
CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.large_string()),
        ("source_id", pa.large_string()),
        ("video", pa.large_string()),  # as the table names it; `located` says where it lies
        ("start_ms", pa.int64()),
        ("end_ms", pa.int64()),
        ("caption", pa.large_string()),
        ("duration_ms", pa.int64()),  # end - start, or the column's, or the probe's; null: unknown
        ("order", pa.float64()),  # place among the clips of its source, before video and time
        ("split", pa.large_string()),
        ("captions", pa.large_list(pa.large_string())),
        ("sentences", pa.large_list(pa.large_string())),
        ("extra", pa.large_string()),  # JSON object of the further columns, names sorted, nulls left out
    ]
)
