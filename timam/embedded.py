"""Pictures in Parquet files and tar archives, read in place: ROOT/shard.parquet#COLUMN:ROW, ROOT/shard.tar#MEMBER."""

import io
import re
import tarfile
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock

_BATCH = 16  # rows that are decoded at once
_KEPT = 128  # rows that are kept, as parallel threads ask for them not quite in order


def container(path: Path) -> Path:
    """The file to look at for size and time: the Parquet file or tar archive that holds a picture, else the path."""
    embedded = re.match(r"(.+?\.(?:parquet|tar))#", str(path), re.IGNORECASE | re.DOTALL)
    return Path(embedded[1]) if embedded and not path.is_file() else path


def open_picture(path: Path) -> Path | io.BytesIO:
    """What Pillow can open: the path of a picture file, or the bytes of an embedded one. OSError and ValueError."""
    file = container(path)
    if file == path:
        return path
    key, stamp = str(path)[len(str(file)) + 1 :], file.stat().st_mtime_ns
    if file.suffix.lower() == ".tar":
        return io.BytesIO(read_member(file, *tar_members(file, stamp)[key]))
    column, _, row = key.rpartition(":")
    picture = _Column(file, column, stamp).read(int(row))
    if not picture:
        raise ValueError("no bytes")
    return io.BytesIO(picture)


@lru_cache(maxsize=64)
def tar_members(file: Path, stamp: int) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of an uncompressed archive's files. `stamp`, the time of change, renews the cache."""
    with tarfile.open(file, "r:") as archive:
        return {m.name: (m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()}


def read_member(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


@lru_cache(maxsize=4)
class _Column:
    """One column of a Parquet file, read forward in small batches. It needs memory for some pages, not for the file."""

    def __init__(self, file: Path, column: str, stamp: int) -> None:
        import pyarrow as pa  # here: picture files need none
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        self.column, self.lock = column, Lock()
        self.is_struct = pa.types.is_struct(self.file.schema_arrow.field(column).type)
        groups = map(self.file.metadata.row_group, range(self.file.metadata.num_row_groups))
        self.starts = [0, *accumulate(group.num_rows for group in groups)]
        self.kept: dict[int, bytes | None] = {}  # the pictures of some rows, in the order of their reading
        self.group = self.next = -1  # the group of rows that is being read, and the row that is read next

    def read(self, row: int) -> bytes | None:
        with self.lock:
            while row not in self.kept:
                self._advance(row)
            return self.kept[row]

    def _advance(self, row: int) -> None:
        """Reads the next batch towards a row; starts again at the row's group where that is behind or further on."""
        if not 0 <= row < self.starts[-1]:
            raise ValueError(f"no row {row}; it has {self.starts[-1]:,}")
        group = bisect_right(self.starts, row) - 1
        if group != self.group or row < self.next:
            self.group, self.next = group, self.starts[group]
            leaf = f"{self.column}.bytes" if self.is_struct else self.column
            self.batches = self.file.iter_batches(_BATCH, row_groups=[group], columns=[leaf], use_threads=False)
        column = next(self.batches).column(0)
        values = (column.field("bytes") if self.is_struct else column).to_pylist()
        self.kept |= enumerate(values, self.next)
        self.next += len(values)
        for old in list(self.kept)[:-_KEPT]:
            del self.kept[old]
