"""The .parquet files of Hugging Face's image data sets."""

import glob
import hashlib
import io
import os
import re
from functools import cached_property
from typing import Any

from PIL import Image

from ..errors import InputError
from ..system.files import is_local, list_folder, parse_json
from .image_files import EXTENSIONS, decoding, files_below
from .image_source import ImageSource, LabelError, Labels

ENDING = ".parquet"
PATTERN = f"*{ENDING}"
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
    :raises InputError: if pyarrow is missing; if a file is damaged or has no images, or a folder
        several splits.
    """

    labelling = "add a column label of whole numbers"

    def __init__(self, path: str, by: str = "auto"):
        self.path = path
        self._cells, self.labels = _read_table(path, files_of(path), by == "auto")
        self.names = [f"{number:06d}" for number in range(len(self._cells))]
        if not self.names:
            raise InputError(f"no images in {path}")

    def _file(self, index: int) -> Any:
        """The bytes of image ``index``, as a buffer."""
        return self._cells[index].as_buffer() or b""

    def open(self, index: int) -> Image.Image:
        return decoding(io.BytesIO(self._file(index)))

    @cached_property
    def stamp(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            file = memoryview(self._file(index))
            digest.update(len(file).to_bytes(8, "little"))
            digest.update(file)
        return digest.hexdigest()


def is_parquet(path: str) -> bool:
    """Whether a path is of such files: its ending says so, or it is a folder of them.

    Not where they lie beside images, which they may describe.
    """
    if path.lower().endswith(ENDING):
        return True
    if not (is_local(path) and (files := files_below(path, PATTERN))):
        return False
    folders = {path, *map(os.path.dirname, files)}
    return not any(
        n.lower().endswith(EXTENSIONS) for folder in folders for n in list_folder(folder)
    )


def files_of(path: str) -> list[str]:
    """The files that a path means, in the order of their names.

    :raises InputError: if there are none, or those of several splits.
    """
    if not is_local(path):
        raise InputError(f"{path} is behind a URL; copy .parquet files to this machine first")
    if os.path.isfile(path):
        return [path]
    files = files_below(path, PATTERN) if os.path.isdir(path) else sorted(glob.glob(path))
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


def _read_table(path: str, files: list[str], with_labels: bool) -> tuple[Any, Labels | None]:
    """The images' files in one column of pyarrow, and the labels.

    :raises InputError: if they cannot be had.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.dataset as ds
    except ImportError:
        raise InputError(
            f'{path} needs pyarrow; run `pip install -e ".[parquet]"`, or unpack the images'
        ) from None
    checking = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=checking)
    try:
        data = ds.dataset(files, format=form)
        parts = list(data.get_fragments())
        size = sum(group.total_byte_size for part in parts for group in part.row_groups)
        if size > MAX_BYTES:
            raise InputError(f"{path} claims {size} bytes, more than {MAX_BYTES}; give fewer files")
        for part in parts if with_labels else ():
            if _features(part.physical_schema) != _features(data.schema):
                raise LabelError(
                    f"{part.path} has other columns or classes than {files[0]}; give the files of "
                    "one data set, or --labels none"
                )
        images = _column_of_images(path, data.schema)
        label = _column_of_labels(path, data.schema) if with_labels else None
        table = data.to_table(columns=[images, *filter(None, [label])])
        cells = table.column(images)
        if pa.types.is_struct(cells.type):
            cells = pc.struct_field(cells, BYTES)
        cells = cells.cast(pa.large_binary())
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole .parquet: {' '.join(str(error).split())}") from error
    if label is None:
        return cells, None
    numbers = table.column(label)
    if numbers.null_count:
        raise LabelError(f"{path} has images without a {label}; give --labels none")
    labels = Labels.of_numbers(numbers.to_numpy(), f"column {label}", path)
    classes = _features(data.schema).get(label, {}).get("names")
    return cells, labels.called([*map(str, classes)], path) if isinstance(classes, list) else labels


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
        features = parse_json(text)["info"]["features"]
        return {str(name): dict(about) for name, about in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
