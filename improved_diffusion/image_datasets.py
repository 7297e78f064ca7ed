"""Images as an endless, repeatable stream of training batches."""

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch as th
from PIL import Image
from torch.utils.data import Dataset

from .data.image_files import MODES, open_image
from .data.image_source import ImageSource, hash_of_names
from .data.sources import open_source
from .errors import InputError


class BadImageWarning(UserWarning):
    """An unreadable image was left out; the message names the file."""


def load_data(
    *,
    data_dir: str | os.PathLike,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    random_flip: bool = False,
    in_channels: int = 3,
    on_bad_image: str = "error",
    drop_last: bool = True,
    shard: int = 0,
    num_shards: int = 1,
    labels: str = "auto",
) -> "BatchStream":
    """Stream the images of ``data_dir`` as ``(batch, cond)`` without end.

    ``batch`` is float32 [N, C, H, W] in [-1, 1]; ``cond`` is ``{"y": int64 [N]}`` if
    ``class_cond``, else ``{}``. Classes that have names are numbered in the sorted order of these.

    :param data_dir: a folder, searched recursively, or any of :data:`.data.sources.KINDS`; also
        behind a blobfile URL.
    :param image_size: height and width of the square images that come out.
    :param deterministic: take the images in the order of their names, every epoch.
    :param seed: with the epoch's number, decides that epoch's order and flips.
    :param num_workers: threads that read ahead; 0 for none. The batches are the same.
    :param random_flip: mirror each image left to right with probability 1/2.
    :param in_channels: 1 for grey, 3 for colour, 4 for colour with alpha.
    :param on_bad_image: ``"error"``, or ``"skip"`` to put the next readable image of the folder in
        the place of one that cannot be read, with one :class:`BadImageWarning` a file.
    :param drop_last: leave out an epoch's last batch where it is not full.
    :param shard: which of ``num_shards`` disjoint parts of every epoch to yield. All parts have
        the same length; up to ``num_shards - 1`` images are left out of an epoch for that.
    :param labels: what classes are taken from: the part of a file's ``"name"`` before the first
        ``_``; its ``"folder"``; ``"none"``; or with ``"auto"`` what the data say themselves, else
        the folder if all files lie in folders one deep, else the name.
    :raises InputError: if the images are missing or too few, or have no classes although
        ``class_cond``; while iterating, if an image cannot be read.
    """
    _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    _require(seed >= 0, f"the seed must not be negative, got {seed}")
    _require(num_workers >= 0, f"num_workers must not be negative, got {num_workers}")
    _require(
        not class_cond or labels != "none",
        "--labels none leaves the images without classes, which --class_cond True asks for; give "
        "another --labels, or leave it out",
    )
    folder = os.fspath(data_dir)
    source = open_source(folder, labels, needs_labels=class_cond)
    needed = num_shards * (batch_size if drop_last else 1)
    _require(
        len(source) >= needed,
        f"{folder} has {len(source)} images, fewer than a batch ({needed}): "
        "lower the batch size or add images",
    )
    dataset = ImageDataset(
        image_size,
        source,
        list(source.needed_labels().numbers) if class_cond else None,
        in_channels=in_channels,
        on_bad_image=on_bad_image,
    )
    return BatchStream(
        dataset=dataset,
        source=source,
        batch_size=batch_size,
        shuffle=not deterministic,
        seed=seed,
        num_workers=num_workers,
        random_flip=random_flip,
        drop_last=drop_last,
        shard=shard,
        num_shards=num_shards,
    )


class ImageDataset(Dataset):
    """Images as ``(float32 [C, H, W] in [-1, 1], cond)`` with ``cond = {"y": int64}`` or ``{}``.

    :param resolution: height and width; an image is scaled by its shorter side and centre-cropped.
    :param image_paths: local paths or blobfile URLs; or any images, as a source of them.
    :param classes: a class number for each path.
    :param shard: take every ``num_shards``-th path, starting with this one.
    :raises InputError: for an impossible argument; on reading, for an image that cannot be read.
    """

    def __init__(
        self,
        resolution: int,
        image_paths: Sequence[str] | ImageSource,
        classes: Sequence[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
        *,
        in_channels: int = 3,
        on_bad_image: str = "error",
    ):
        super().__init__()
        _require(resolution >= 1, f"the image size must be at least 1, got {resolution}")
        _require(in_channels in MODES, f"in_channels must be 1, 3 or 4, got {in_channels}")
        _require(
            on_bad_image in ("error", "skip"),
            f"on_bad_image must be error or skip, got {on_bad_image!r}",
        )
        _check_shard(shard, num_shards)
        self.resolution = resolution
        self.in_channels = in_channels
        self.on_bad_image = on_bad_image
        source = image_paths if isinstance(image_paths, ImageSource) else _Paths(image_paths)
        self.source = source
        self.local_images = range(len(source))[shard::num_shards]  # their numbers in the source
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.int64]]:
        pixels, used, complaints = self.read(index)
        for complaint in complaints:
            warnings.warn(complaint, BadImageWarning, stacklevel=2)
        cond = {} if self.local_classes is None else {"y": np.int64(self.local_classes[used])}
        return _to_floats(pixels[None])[0], cond

    def read(self, index: int) -> tuple[np.ndarray, int, list[str]]:
        """Read image ``index``, or the next readable one under ``on_bad_image="skip"``.

        Returns its pixels, uint8 [H, W, C]; the index of the image that they are of; and a line on
        every bad file that was met for the first time.

        :raises IndexError: if there is no such image.
        """
        index = range(len(self))[index]
        complaints = []
        for used in chain(range(index, len(self)), range(index)):
            if used in self._bad:
                continue
            try:
                number = self.local_images[used]
                pixels = self.source.read(number, self.resolution, self.in_channels)
            except InputError as error:
                if self.on_bad_image == "error":
                    raise InputError(
                        f"{error}; mend or remove it, or give --on_bad_image skip"
                    ) from error
                self._bad[used] = str(error)
                complaints.append(f"left out: {error}")
            else:
                return pixels, used, complaints
        raise InputError(f"none of the {len(self)} images is readable: {self._bad[index]}")


class _Paths(ImageSource):
    """Image files of any folders, by their paths."""

    labels = None

    def __init__(self, paths: Sequence[str]):
        self.path, self.names = "", paths

    def where(self, index: int) -> str:
        return self.names[index]

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return open_image(self.names[index])

    @property
    def stamp(self) -> str:
        return hash_of_names(self.names)


def _warn(complaint: str) -> None:
    warnings.warn(complaint, BadImageWarning, stacklevel=3)


@dataclass(eq=False, repr=False, kw_only=True)
class BatchStream:
    """An endless iterator of ``(batch, cond)``; see :func:`load_data`.

    What comes next depends on the seed, the epoch and the position in it alone, so that
    ``state_dict`` is a few numbers and a stream that loads it goes on bit for bit.
    """

    dataset: ImageDataset
    source: ImageSource
    batch_size: int
    shuffle: bool
    seed: int
    num_workers: int
    random_flip: bool
    drop_last: bool
    shard: int
    num_shards: int
    complain: Callable[[str], object] = _warn  # told of each image that is left out

    def __post_init__(self) -> None:
        _check_shard(self.shard, self.num_shards)
        share = len(self.source) // self.num_shards
        last = 0 if self.drop_last else self.batch_size - 1
        self.batches_per_epoch = (share + last) // self.batch_size
        self.epoch = 0
        self.position = 0
        self._results: Iterator[_Result] | None = None
        self._complaints: set[str] = set()

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        if self._results is None:
            self._results = self._start()
        try:
            result = next(self._results)
        except BaseException:  # Ctrl-C too: the next batch is the one that was not yielded
            self.close()
            raise
        for complaint in result.complaints:
            if complaint not in self._complaints:  # two threads may meet a bad file at once
                self._complaints.add(complaint)
                self.complain(complaint)
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        cond = {} if result.classes is None else {"y": th.from_numpy(result.classes)}
        return th.from_numpy(_to_floats(result.pixels)), cond

    def summary(self) -> dict[str, Any]:
        """Describe the data: ``folder``, ``images`` (count), ``classes``, ``image_size``.

        ``classes`` is a list of names, or None where the images carry no labels; ``classes_by``
        says what gave them.
        """
        labels = self.source.labels
        return {
            "folder": self.source.path,
            "images": len(self.source),
            "classes": labels and labels.classes,
            "classes_by": labels and labels.origin,
            "image_size": self.dataset.resolution,
        }

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on after the last batch that was yielded; equal for all shards."""
        return {**self._identity, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the stream that made ``state`` stood.

        :raises InputError: if the folder, the seed, the batch size or the number of shards is not
            that stream's, or if ``state`` is not a stream's at all.
        """
        self.check_folder(state)
        own = self._identity
        for key in ("seed", "batch_size", "num_shards"):
            if state[key] != own[key]:
                raise InputError(
                    f"the data order to continue was made with {key} {state[key]}, "
                    f"not {own[key]}: use the same value"
                )
        if not (state["epoch"] >= 0 and 0 <= state["position"] < self.batches_per_epoch):
            raise InputError(f"the data has no batch {state['position']} of epoch {state['epoch']}")
        self.close()
        self.epoch, self.position = state["epoch"], state["position"]

    def check_folder(self, state: dict[str, Any]) -> None:
        """Compare the images with those of the stream that made ``state``.

        :raises InputError: if they are not the same, or ``state`` is not a stream's at all.
        """
        own = self.state_dict()
        # Older states have no classes.
        state = {"classes": own["classes"]} | state if isinstance(state, dict) else {}
        if state.keys() != own.keys():
            raise InputError(f"not the state of a data stream: expected {', '.join(own)}")
        as_many = f"has {own['count']} images as when the run was saved, but"
        for key, change in (
            ("count", f"had {state['count']} images when the run was saved and has {own['count']}"),
            ("names", f"{as_many} other ones or other names"),
            ("classes", f"{as_many} in other classes"),
        ):
            if state[key] != own[key]:
                raise InputError(f"{self.source.path} {change}: restore it or start a new run")

    def close(self) -> None:
        """Stop the threads that read ahead; the stream starts them anew when it is used."""
        self._results = None

    @cached_property
    def _identity(self) -> dict[str, Any]:
        classes = self.dataset.local_classes
        numbers = None if classes is None else np.asarray(classes, dtype=np.int64).tobytes()
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "num_shards": self.num_shards,
            "count": len(self.source),
            "names": self.source.fingerprint,
            "classes": numbers and hashlib.sha256(numbers).hexdigest(),
        }

    def _start(self) -> Iterator["_Result"]:
        plans = self._plans(self.epoch, self.position)
        return self._read_ahead(plans) if self.num_workers else map(self._read, plans)

    def _read_ahead(self, plans: Iterator["_Plan"]) -> Iterator["_Result"]:
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            ahead = deque(pool.submit(self._read, p) for p in islice(plans, 2 * self.num_workers))
            while True:
                ahead.append(pool.submit(self._read, next(plans)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, plan: "_Plan") -> "_Result":
        """From the plan of a batch to its pixels."""
        images = [self.dataset.read(int(index)) for index in plan[0]]
        pixels = [
            image[:, ::-1] if flip else image
            for (image, *_), flip in zip(images, plan[1], strict=True)
        ]
        numbers = self.dataset.local_classes
        classes = None
        if numbers is not None:
            classes = np.array([numbers[used] for _, used, _ in images], dtype=np.int64)
        return _Result(np.stack(pixels), classes, [line for *_, lines in images for line in lines])

    def _plans(self, epoch: int, position: int) -> Iterator["_Plan"]:
        """Which images make each batch, and which of them are mirrored, from a point on."""
        size = self.batch_size
        while True:
            indices, flips = self._order(epoch)
            for batch in range(position, self.batches_per_epoch):
                part = slice(batch * size, (batch + 1) * size)
                yield indices[part], flips[part]
            epoch, position = epoch + 1, 0

    def _order(self, epoch: int) -> "_Plan":
        count = len(self.source)
        rng = np.random.default_rng([self.seed, epoch])
        indices = rng.permutation(count) if self.shuffle else np.arange(count)
        flips = rng.random(count) < (0.5 if self.random_flip else 0.0)
        part = slice(self.shard, count - count % self.num_shards, self.num_shards)
        return indices[part], flips[part]


_Plan = tuple[np.ndarray, np.ndarray]  # int64 [N] image indices, bool [N] flips


class _Result(NamedTuple):
    pixels: np.ndarray  # uint8 [N, H, W, C]
    classes: np.ndarray | None  # int64 [N]
    complaints: list[str]


def _to_floats(pixels: np.ndarray) -> np.ndarray:
    """From uint8 [N, H, W, C] to float32 [N, C, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1


def _check_shard(shard: int, num_shards: int) -> None:
    _require(0 <= shard < num_shards, f"shard must lie in [0, {num_shards}), got {shard}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
