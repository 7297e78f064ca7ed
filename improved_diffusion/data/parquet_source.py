"""The .parquet files of Hugging Face's image data sets."""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.files import is_local, list_folder
from .array_source import check_no_file_names
from .image_files import EXTENSIONS, decoding
from .image_source import ImageSource, Labels

ENDING = ".parquet"
MAX_BYTES = 2**35  # of all images' files, which are held in memory
BYTES = "bytes"  # the part of an image's cell that holds its file


class ParquetSource(ImageSource):
    """Images whose files are cells of a table, as Hugging Face's ``Image`` feature stores them.

    The files' bytes are held in memory, not their pixels. Classes come from the column ``label``,
    or else from the only one that is said to hold class labels.

    :param path: of a file; of a folder with the files of one split; or a pattern of files, such as
        ``mnist/train-*.parquet``.
    :param by: "auto" or "none".
    :param allow_empty_files: cells without a byte are found when they are read, not before.
    :raises InputError: if pyarrow is missing; if a file is damaged or has no images, or a folder
        several splits; or for another ``by``.
    """

    labelling = "add a column label of whole numbers"

    def __init__(self, path: str, by: str = "auto", allow_empty_files: bool = False):
        check_no_file_names(path, by)
        self.path = path
        table, label = _read_table(path, files_of(path), with_labels=by == "auto")
        self._cells = table.column(BYTES).combine_chunks()
        self.names = [f"{number:06d}" for number in range(len(self._cells))]
        if not self.names:
            raise InputError(f"no images in {path}")
        for index in [] if allow_empty_files else np.flatnonzero(self._lengths == 0)[:1]:
            raise InputError(f"cannot read image {self.where(index)}: it has no bytes")
        self.labels = self._labels(table, label) if label else None

    @property
    def _lengths(self) -> np.ndarray:
        """The bytes of each image's file; 0 where there is none."""
        import pyarrow.compute as pc

        return pc.fill_null(pc.binary_length(self._cells), 0).to_numpy()

    def _labels(self, table: Any, label: str) -> Labels:
        column = table.column(label)
        if column.null_count:
            raise InputError(f"{self.path} has images without a {label}; give --labels none")
        labels = Labels.of_numbers(column.to_numpy(), f"the column {label}", self.path)
        classes = _features(table.schema).get(label, {}).get("names")
        return labels if classes is None else labels.called(list(map(str, classes)), self.path)

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[Image.Image]:
        with decoding(io.BytesIO(self._cells[index].as_buffer() or b"")) as image:
            yield image

    @property
    def stamp(self) -> str:
        digest = hashlib.sha256(self._lengths.tobytes())
        for buffer in filter(None, self._cells.buffers()):
            digest.update(buffer)
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        return self.stamp


def is_parquet(path: str) -> bool:
    """Whether a path is of such files: its ending says so, or it is a folder of them alone."""
    if path.lower().endswith(ENDING):
        return True
    names = [name.lower() for name in list_folder(path)]
    return any(name.endswith(ENDING) for name in names) and not any(
        name.endswith(EXTENSIONS) for name in names
    )


def files_of(path: str) -> list[str]:
    """The files that a path means, in the order of their names.

    :raises InputError: if there are none, or those of several splits.
    """
    if not is_local(path):
        raise InputError(f"{path} is behind a URL; copy .parquet files to this machine first")
    if os.path.isfile(path):
        return [path]
    pattern = os.path.join(glob.escape(path), f"*{ENDING}") if os.path.isdir(path) else path
    files = sorted(glob.glob(pattern))
    if not files:
        raise InputError(f"no file {path}; check --data_dir")
    splits = {re.sub(r"[-_.]?\d*(-of-\d+)?\.parquet$", "", os.path.basename(f)) for f in files}
    if len(splits) > 1:
        raise InputError(
            f"{path} has the files of {' and '.join(sorted(splits))}; name one of them, or give a "
            f"pattern such as {os.path.join(os.path.dirname(files[0]), min(splits))}-*{ENDING}"
        )
    return files


def _read_table(path: str, files: list[str], with_labels: bool) -> tuple[Any, str | None]:
    """A table with the files' bytes as the column ``bytes``, and the name of that of the labels.

    :raises InputError: if it cannot be had.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow; run `pip install -e '.[parquet]'`, or unpack the images"
        ) from None
    try:
        readers = [pq.ParquetFile(file, page_checksum_verification=True) for file in files]
        schema = readers[0].schema_arrow
        image = _column_of_images(path, schema)
        label = _column_of_labels(path, schema) if with_labels else None
        columns = [image, *filter(None, [label])]
        size = sum(map(_uncompressed, readers))
        if size > MAX_BYTES:
            raise InputError(f"{path} claims {size} bytes, more than {MAX_BYTES}; give fewer files")
        table = pa.concat_tables([reader.read(columns) for reader in readers])
        cells = table.column(image)
        if pa.types.is_struct(cells.type):
            cells = pc.struct_field(cells, BYTES)
        place = table.schema.get_field_index(image)
        return table.set_column(place, BYTES, cells.cast(pa.large_binary())), label
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole .parquet: {' '.join(str(error).split())}") from error


def _uncompressed(reader: Any) -> int:
    groups = range(reader.metadata.num_row_groups)
    return sum(reader.metadata.row_group(group).total_byte_size for group in groups)


def _column_of_images(path: str, schema: Any) -> str:
    """:raises InputError: if there is none, or several."""
    import pyarrow as pa

    def has_files(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index(BYTES) >= 0 and has_files(kind.field(BYTES).type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if has_files(field.type)]
    if len(found) != 1:
        said = f"several columns of images ({', '.join(found)})" if found else "no column of images"
        raise InputError(f"{path} has {said}; it needs one, as Hugging Face's image data sets have")
    return found[0]


def _column_of_labels(path: str, schema: Any) -> str | None:
    """:raises InputError: if there are several, and none is called ``label``."""
    import pyarrow as pa

    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    if "label" in whole:
        return "label"
    known = [name for name in whole if _features(schema).get(name, {}).get("_type") == "ClassLabel"]
    if len(known) > 1:
        raise InputError(
            f"{path} has several columns of class labels ({', '.join(known)}); call one of them "
            "label, or give --labels none"
        )
    return known[0] if known else None


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata say of each column; nothing where there are none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        return {str(name): dict(about) for name, about in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
