"""What a network sees in images: the registry of feature networks, features, and a file of them."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch as th
from torch.nn import functional as F

from .. import dist_util, logger
from ..data.image_grid import checked_pictures
from ..diffusion.registry import Registry
from ..errors import InputError
from ..logs.progress import progress_bar
from ..system.archives import read_arrays
from ..system.files import atomic_write, is_local, join
from ..system.precision import Precision
from .efficientnet import EfficientNetLite0, open_lite0
from .image_sets import FEATURES, ImageSet
from .inception import InceptionV3, open_inception

VERSION = 1  # of the preprocessing and of the networks here: one more where features change

BATCH_SIZE = 16  # images at a time
HEADERS = 2**12  # bytes, more than the key and the headers of a file of features have


@dataclass(frozen=True)
class FeatureNetwork:
    """A network to judge images by, and what it wants to be fed.

    :param title: its name beside every figure.
    :param is_fid: figures of it may be called FID and KID without its name.
    :param open: from a file of weights, "" for those that a package brings, to a module in eval
        mode on the CPU that makes [N, dimension] of [N, 3, size, size].
    :param dimension: of the features.
    :param size: height and width of its input.
    :param grey: the input is (x - grey) / 128, with x in [0, 255].
    """

    title: str
    is_fid: bool
    open: Callable[[str], th.nn.Module]
    dimension: int
    size: int
    grey: float


NETWORKS: Registry[FeatureNetwork] = Registry("features")
NETWORKS["lite0"] = FeatureNetwork(
    title="EfficientNet-Lite0",
    is_fid=False,
    open=open_lite0,
    dimension=EfficientNetLite0.dimension,
    size=128,
    grey=127,
)
NETWORKS["inception"] = FeatureNetwork(
    title="Inception",
    is_fid=True,
    open=open_inception,
    dimension=InceptionV3.dimension,
    size=299,
    grey=128,
)


class Extractor:
    """A network of :data:`NETWORKS` with its weights, on this process's device.

    :param weights: path of the weights; "" for those that a package brings.
    :param precision: fp32, bf16, or on a GPU fp16.
    :raises InputError: for an unknown name or precision, or weights that are missing, unsafe, or
        do not fit.
    :ivar title: the network's name, for people.
    :ivar is_fid: figures may be called FID and KID without it.
    :ivar dimension: of the features.
    :ivar fingerprint: a SHA-256 over all that features depend on besides the images.
    """

    def __init__(self, name: str, weights: str = "", precision: str = "fp32"):
        self.name = name
        self.network = NETWORKS[name]
        self.title = self.network.title
        self.is_fid = self.network.is_fid
        self.dimension = self.network.dimension
        self.precision = Precision(precision, dist_util.dev())
        module = self.network.open(weights)
        self.fingerprint = self._fingerprint(module)
        self.module = module.to(dist_util.dev())

    def _fingerprint(self, module: th.nn.Module) -> str:
        about = (VERSION, self.network.size, self.network.grey, self.precision.name)
        digest = hashlib.sha256(repr(about).encode())
        for name, values in module.state_dict().items():
            digest.update(name.encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    @th.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of images.

        :param images: uint8 [N, H, W, C]; C = 1 is grey, a fourth channel is left out.
        :return: float32 [N, dimension].
        :raises InputError: for images of another shape or type, and if features are not finite, as
            of weights that are not.
        """
        images = checked_pictures(images)
        parts = [
            self._of_batch(images[first : first + BATCH_SIZE])
            for first in range(0, len(images), BATCH_SIZE)
        ]
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise InputError(f"{self.title} gives features that are not finite; check its weights")
        return features

    def _of_batch(self, images: np.ndarray) -> np.ndarray:
        x = resized(images, self.network.size).to(dist_util.dev())
        x = ((x - self.network.grey) / 128).contiguous(memory_format=th.channels_last)
        with self.precision.autocast():
            return self.module(x).float().cpu().numpy()


def resized(images: np.ndarray, size: int) -> th.Tensor:
    """Colour images of another size, by an antialiased bicubic filter in float32.

    It is what Pillow makes of each channel as floats, and so clean-fid (Parmar et al. 2022).

    :param images: uint8 [N, H, W, C].
    :return: float32 [N, 3, size, size] in [0, 255].
    """
    x = th.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, :3])).float()
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return x.expand(-1, 3, -1, -1)


def features_of(extractor: Extractor, images: ImageSet) -> np.ndarray:
    """Features of all images, read and computed batch by batch.

    Each thread has batches of its own: threads that share one wait for each other at every layer,
    which takes many times as long where other programs want the processor too.

    :return: float32 [N, dimension].
    :raises InputError: if an image cannot be read.
    """

    def of_batch(numbers: range) -> np.ndarray:
        return extractor(images.read(numbers))

    count, threads = len(images), th.get_num_threads()
    batches = [range(i, min(i + BATCH_SIZE, count)) for i in range(0, count, BATCH_SIZE)]
    features = np.empty((count, extractor.dimension), np.float32)
    try:
        with (
            progress_bar(count, "image") as bar,
            ThreadPoolExecutor(threads, initializer=th.set_num_threads, initargs=(1,)) as pool,
        ):
            for numbers, part in zip(batches, pool.map(of_batch, batches), strict=True):
                features[numbers.start : numbers.stop] = part
                bar.update(len(numbers))
    finally:
        th.set_num_threads(threads)  # which threads to come start with
    return features


def cached_features(extractor: Extractor, images: ImageSet, folders: Sequence[str]) -> np.ndarray:
    """:func:`features_of`, from a file in one of some folders where there is one of these images.

    A file of other images, or of another network's weights, is never used: the features are
    computed anew, as they are where a file is damaged. They are kept in the first of the folders
    that can be written to, in the place of an older file.

    :param folders: where to look, and where to keep the file; URLs are left out.
    :return: float32 [N, dimension].
    :raises InputError: if an image cannot be read.
    """
    name = f"{images.name}.{extractor.name}-{extractor.precision.name}{FEATURES}"
    paths = [join(folder, name) for folder in folders if is_local(folder)]
    key = hashlib.sha256(f"{images.identity} {extractor.fingerprint}".encode()).hexdigest()
    for path in filter(os.path.exists, paths):
        try:
            return _read_cache(path, key, (len(images), extractor.dimension))
        except InputError as error:
            logger.warn(f"{error}; computing the features anew")
    logger.log(f"{extractor.title}: features of {len(images)} images of {images.name}")
    features = features_of(extractor, images)
    for path in paths:
        try:
            with atomic_write(path) as file:
                np.savez(file, key=np.array(key), features=features)
            logger.log(f"kept in {path}")
            break
        except OSError as error:
            logger.warn(f"cannot keep the features in {path}: {error.strerror or error}")
    return features


def _read_cache(path: str, key: str, shape: tuple[int, int]) -> np.ndarray:
    """The features in a file.

    :raises InputError: if the file is damaged, or of other images or another network.
    """
    found = read_arrays(path, ("key",), HEADERS).get("key")
    if found is None or found.shape or str(found) != key:
        raise InputError(f"{path} is of images or weights that have changed")
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    features = read_arrays(path, ("features",), size + HEADERS).get("features")
    if features is None or features.shape != shape or features.dtype != np.float32:
        raise InputError(f"{path} is no file of features")
    return features
