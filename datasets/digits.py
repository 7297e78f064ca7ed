"""Write scikit-learn's 1,797 handwritten digits as PNG files to digits_train/ and digits_test/.

They come with scikit-learn, so this needs no network.
"""

from pathlib import Path

import numpy as np
from image_folders import Split, write_split
from PIL import Image

from improved_diffusion.commands.cli import run
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 32
TEST_IMAGES = 297


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="where digits_train/ and digits_test/ go",
    )
    args = parser.parse_args()
    pixels, labels = load_digits()
    for name, part in (
        ("digits_train", slice(None, -TEST_IMAGES)),
        ("digits_test", slice(-TEST_IMAGES, None)),
    ):
        write_split(Split(name, pixels[part], labels[part], CLASSES), args.out_dir)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits, enlarged, as uint8 [1797, 32, 32, 3], and their values [1797].

    :raises InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError('scikit-learn is missing: pip install -e ".[digits]"') from error
    digits = datasets.load_digits()
    return np.stack([enlarge(image) for image in digits.images]), digits.target


def enlarge(image: np.ndarray) -> np.ndarray:
    """From an 8x8 digit of the levels 0 to 16 to uint8 [32, 32, 3]."""
    grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))


if __name__ == "__main__":
    run(main)
