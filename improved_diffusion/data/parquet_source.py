"""The .parquet files of Hugging Face's image data sets."""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.files import is_local, list_folder
from .image_files import EXTENSIONS, decoding
from .image_source import ImageSource, LabelError, Labels, check_no_file_names

ENDING = ".parquet"
MAX_BYTES = 2**35  # of all images' files, which are held in memory
# What follows a split in a file's name, with the hash that earlier versions of datasets wrote.
SHARD = re.compile(r"[-_.]?\d*(-of-\d+)?(-[0-9a-f]{16})?\.parquet$", re.IGNORECASE)
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
        self._chunks, lengths, self.labels = _read_tables(path, files_of(path), by == "auto")
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self.names = [f"{number:06d}" for number in range(self._starts[-1])]
        if not self.names:
            raise InputError(f"no images in {path}")
        for index in [] if allow_empty_files else np.flatnonzero(lengths == 0)[:1]:
            raise InputError(f"cannot read image {self.where(index)}: it has no bytes")

    def _file(self, index: int) -> Any:
        """The bytes of image ``index``, as a buffer."""
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._chunks[chunk][index - int(self._starts[chunk])].as_buffer() or b""

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[Image.Image]:
        with decoding(io.BytesIO(self._file(index))) as image:
            yield image

    @cached_property
    def stamp(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            file = memoryview(self._file(index))
            digest.update(len(file).to_bytes(8, "little"))
            digest.update(file)
        return digest.hexdigest()


def is_parquet(path: str) -> bool:
    """Whether a path is of such files: its ending says so, or it is a folder of them alone."""
    if path.lower().endswith(ENDING):
        return True
    if not is_local(path) or any(n.lower().endswith(EXTENSIONS) for n in list_folder(path)):
        return False
    return bool(_files_below(path))


def _files_below(folder: str) -> list[str]:
    """The files in a folder; where there are none, those in folders of it."""
    found = (glob.glob(os.path.join(glob.escape(folder), at + ENDING)) for at in ("*", "*/*"))
    return sorted(next(filter(None, found), []))


def files_of(path: str) -> list[str]:
    """The files that a path means, in the order of their names.

    :raises InputError: if there are none, or those of several splits.
    """
    if not is_local(path):
        raise InputError(f"{path} is behind a URL; copy .parquet files to this machine first")
    if os.path.isfile(path):
        return [path]
    files = _files_below(path) if os.path.isdir(path) else sorted(glob.glob(path))
    if not files:
        raise InputError(f"no file {path}; check the path")
    # A split is called by its files, or where these are numbers alone by their folder.
    splits = {
        SHARD.sub("", os.path.basename(file)) or os.path.basename(os.path.dirname(file))
        for file in files
    }
    if len(splits) > 1:
        raise InputError(
            f"{path} has the files of {' and '.join(sorted(splits))}; name one of them, or give a "
            f"pattern such as {os.path.join(os.path.dirname(files[0]), min(splits))}-*{ENDING}"
        )
    return files


class _Header(NamedTuple):
    """What a file says of itself before it is read."""

    images: str  # the column
    labels: str | None
    classes: list[str] | None  # what the numbers of the labels are called


def _read_tables(
    path: str, files: list[str], with_labels: bool
) -> tuple[list[Any], np.ndarray, Labels | None]:
    """The images' files in arrays of pyarrow, the bytes of each, 0 for none, and the labels.

    :raises InputError: if they cannot be had.
    """
    try:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow; run `pip install -e '.[parquet]'`, or unpack the images"
        ) from None
    header, size = None, 0
    for file in files:
        with _naming(file):
            about = pq.read_metadata(file)
            found = _header(file, about.schema.to_arrow_schema(), with_labels)
        size += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if found != (header := header or found):
            raise InputError(
                f"{file} has other columns of images or labels, or other classes, than {files[0]}; "
                "give the files of one data set"
            )
    if size > MAX_BYTES:
        raise InputError(f"{path} claims {size} bytes, more than {MAX_BYTES}; give fewer files")
    assert header is not None
    chunks, lengths, numbers = [], [], []
    for file in files:
        with _naming(file), pq.ParquetFile(file, page_checksum_verification=True) as reader:
            table = reader.read([header.images, *filter(None, [header.labels])])
            cells = _files_in(table.column(header.images))
            chunks += cells.chunks
            lengths.append(pc.fill_null(pc.binary_length(cells), 0).to_numpy())
            if header.labels:
                numbers.append(_numbers(file, table, header.labels))
    labels = None
    if header.labels:
        said = f"column {header.labels}"
        labels = Labels.of_numbers(np.concatenate(numbers), said, path)
        if header.classes is not None:
            labels = labels.called(header.classes, path)
    return chunks, np.concatenate(lengths), labels


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    """:raises InputError: naming the file, in the place of what pyarrow raises of damaged ones."""
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file} is no whole .parquet: {' '.join(str(error).split())}") from error


def _files_in(cells: Any) -> Any:
    """A column of images as one of their files' bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(cells.type):
        cells = pc.struct_field(cells, BYTES)
    return cells.cast(pa.large_binary())


def _numbers(file: str, table: Any, label: str) -> np.ndarray:
    column = table.column(label)
    if column.null_count:
        raise LabelError(f"{file} has images without a {label}; give --labels none")
    return column.to_numpy()


def _header(file: str, schema: Any, with_labels: bool) -> _Header:
    images = _column_of_images(file, schema)
    labels = _column_of_labels(file, schema) if with_labels else None
    classes = _features(schema).get(labels or "", {}).get("names")
    return _Header(images, labels, [*map(str, classes)] if isinstance(classes, list) else None)


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
    features = _features(schema)
    found = [name for name in whole if name == "label"] or [
        name for name in whole if features.get(name, {}).get("_type") == "ClassLabel"
    ]
    if len(found) > 1:
        raise LabelError(
            f"{path} has several columns of class labels ({', '.join(found)}); call one of them "
            "label, or give --labels none"
        )
    return found[0] if found else None


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata say of each column; nothing where there are none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        return {str(name): dict(about) for name, about in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
