"""Judging samples as a user does, and while training."""

import json

import killing
import numpy as np
import openpyxl
import pytest
from in_process import in_process
from PIL import Image

from improved_diffusion.evaluation.efficientnet import PACKAGE

SIZE = 8
CLASSES = ("dark", "light", "striped")

pytest.importorskip(PACKAGE)


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of three kinds that are easily told apart, uint8 [N, 8, 8, 3], and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    base = np.array([60, 190, 125])[labels][:, None, None, None]
    stripes = np.where(np.arange(SIZE) % 2, 70, -70)[None, None, :, None]
    tint = rng.integers(-25, 26, (count, 1, 1, 3))
    grain = rng.integers(-15, 16, (count, SIZE, SIZE, 3))
    pixels = base + np.where(labels == 2, 1, 0)[:, None, None, None] * stripes + tint + grain
    return pixels.astype(np.uint8), labels


def folder_of(path, seed, count=60, names=CLASSES):
    path.mkdir()
    for i, (pixels, label) in enumerate(zip(*pictures(seed, count), strict=True)):
        name = f"{names[label]}_{i:03d}.png" if names else f"{i:03d}.png"
        Image.fromarray(pixels).save(path / name)
    return path


def npz_of(path, seed, count=60, *, noise=0.0, labels=True):
    pixels, classes = pictures(seed, count)
    grain = np.random.default_rng(0).normal(0, 1, pixels.shape) * noise
    pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, *([pixels, classes] if labels else [pixels]))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    folder_of(root / "test", seed=1)
    folder_of(root / "train", seed=2)
    npz_of(root / "run" / "samples_60x8x8x3.npz", seed=3)
    return root


def judge(data, out, **flags):
    given = {"samples": data / "run", "reference": data / "test", "log_dir": out} | flags
    return in_process("image_eval.py", given)


def read(out):
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def verdict(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("verdict") / "out"
    assert judge(data, out, train=data / "train") == 0
    return out


def test_real_images_pass_for_real_ones(verdict):
    found = read(verdict)
    assert found["features"] == "EfficientNet-Lite0"
    assert (found["num_samples"], found["num_reference"], found["num_train"]) == (60, 60, 60)
    assert abs(found["kid"]) < 3 * found["kid_error"]
    assert found["kid_noise"] > 10 * abs(found["kid"])
    assert found["frechet"] < found["frechet_noise"] / 2
    assert abs(found["frechet"] - found["frechet_real"]) < 4 * found["frechet_error"]
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name] > found[f"{name}_noise"]
        assert found[f"{name}_error"] >= 0
    assert found["recognised"] > 0.9
    assert found["recognised_real"] > 0.9
    assert found["recognised_noise"] == pytest.approx(1 / 3)
    by_class = found["recognised_by_class"]
    assert by_class.keys() == set(CLASSES)
    assert np.mean([*by_class.values()]) == pytest.approx(found["recognised"])  # twenty of each
    assert found["copies"] < 0.1


def test_a_verdict_is_a_workbook_and_a_picture_too(verdict):
    book = openpyxl.load_workbook(verdict / "evaluation.xlsx")
    cells = [cell for row in book["summary"].iter_rows(values_only=True) for cell in row]
    assert "KID (EfficientNet-Lite0)" in cells
    assert read(verdict)["kid"] in cells
    assert "recognised as striped" in cells
    with Image.open(verdict / "nearest.png") as picture:
        assert picture.width > picture.height / 3  # a sample and four training images in a row
    with np.load(verdict / "evaluation.npz") as changes:
        assert changes["samples"].shape == changes["reference"].shape == (60,)


def test_features_of_real_images_are_kept_beside_them(verdict, data, tmp_path, capsys):
    kept = {path: path.stat().st_mtime_ns for path in data.glob("*.features.npz")}
    assert len(kept) == 2
    assert judge(data, tmp_path / "again") == 0
    printed = capsys.readouterr().out
    assert "features of" not in printed
    assert {path: path.stat().st_mtime_ns for path in data.glob("*.features.npz")} == kept
    assert read(tmp_path / "again")["kid"] == pytest.approx(read(verdict)["kid"])
    assert read(tmp_path / "again")["kid_real"] is None
    assert "copies" not in read(tmp_path / "again")


def test_samples_say_their_classes_whatever_those_of_the_reference_are_taken_from(data, tmp_path):
    assert judge(data, tmp_path / "out", labels="name") == 0
    assert read(tmp_path / "out")["recognised"] > 0.9


def test_real_images_have_figures_without_a_training_set(data, tmp_path):
    """Some of the reference by the others."""
    reference = folder_of(tmp_path / "many", seed=1, count=120)
    assert judge(data, tmp_path / "out", reference=reference, labels="none") == 0
    found = read(tmp_path / "out")
    assert abs(found["kid_real"]) < 5 * found["kid_error"]
    assert found["frechet_real"] < found["frechet_noise"] / 2
    assert found["recall_real"] > found["recall_noise"]


def test_noisy_samples_and_copies_are_found_out(verdict, data, tmp_path):
    npz_of(tmp_path / "noisy.npz", seed=3, noise=40)
    assert judge(data, tmp_path / "noisy", samples=tmp_path / "noisy.npz") == 0
    assert read(tmp_path / "noisy")["kid"] > read(verdict)["kid"] + 3 * read(verdict)["kid_error"]
    copies = {"samples": npz_of(tmp_path / "copies.npz", seed=2), "train": data / "train"}
    assert judge(data, tmp_path / "copies", **copies) == 0
    assert read(tmp_path / "copies")["copies"] == 1


def test_results_are_refused_or_replaced(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert judge(data, out) == 0
    before = (out / "evaluation.json").read_bytes()
    assert judge(data, out, samples=data / "train") == 2
    assert "has results of this script already" in capsys.readouterr().err
    assert (out / "evaluation.json").read_bytes() == before
    assert judge(data, out, samples=data / "train", overwrite=True) == 0
    assert (out / "evaluation.json").read_bytes() != before
    assert read(out)["recognised"] > 0.9  # by the names of the files


def few(data, tmp_path):
    return {"samples": npz_of(tmp_path / "few.npz", seed=1, count=49)}


def larger(data, tmp_path):
    large = np.zeros((60, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "large.npz", large)
    return {"samples": tmp_path / "large.npz"}


def grey(data, tmp_path):
    folder_of(tmp_path / "grey", seed=1)
    for path in (tmp_path / "grey").iterdir():
        Image.open(path).convert("L").save(path)
    return {"reference": tmp_path / "grey"}


def grey_samples(tmp_path):
    pixels, _ = pictures(3, 60)
    np.savez(tmp_path / "grey.npz", pixels[..., :1])
    return {"samples": tmp_path / "grey.npz", "labels": "none"}


def test_grey_samples_are_judged_by_colour_files_of_grey_images(data, tmp_path, capsys):
    """As those of the handwritten digits."""
    for i, pixels in enumerate(pictures(1, 60)[0][..., :1].repeat(3, axis=-1)):
        Image.fromarray(pixels).save(tmp_path / f"{i:03d}.png")
    assert judge(data, tmp_path / "out", reference=tmp_path, **grey_samples(tmp_path)) == 0
    Image.new("RGB", (8, 8), "red").save(tmp_path / "000.png")
    assert judge(data, tmp_path / "two", reference=tmp_path, **grey_samples(tmp_path)) == 2
    said = "the images of --reference are in colour, the samples in grey"
    assert said in capsys.readouterr().err


def nameless(data, tmp_path):
    return {"reference": folder_of(tmp_path / "nameless", seed=1, names=())}


def other_classes(data, tmp_path, flag="samples"):
    names = ("bird", "fish", "tree")
    return {flag: folder_of(tmp_path / "others", seed=1, names=names)}


def test_names_that_no_sample_has_do_no_harm(data, tmp_path):
    pixels, classes = pictures(1, 60)
    names = np.array(["bird", *CLASSES])  # as of a model that knows more
    np.savez(tmp_path / "some.npz", pixels, classes + 1, classes=names)
    assert judge(data, tmp_path / "out", samples=tmp_path / "some.npz") == 0
    assert read(tmp_path / "out")["recognised"] > 0.9


def too_many_classes(data, tmp_path):
    pixels, _ = pictures(1, 60)
    np.savez(tmp_path / "more.npz", pixels, np.arange(60))
    return {"samples": tmp_path / "more.npz"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda data, tmp_path: {"samples": data / "test"},
            "--samples and --reference are",
        ),
        (lambda data, tmp_path: {"train": data / "test"}, "--reference and --train are"),
        (lambda data, tmp_path: {"samples": ""}, "no --samples given"),
        (grey, "the images of --reference are in grey, the samples in colour"),
        (few, "--samples has 49 images, too few"),
        (larger, "fewer than 16"),
        (nameless, "have none: name the files <class>_<number>.png, or give each class"),
        (other_classes, "--samples has images of class bird, which --reference has not"),
        (
            lambda data, tmp_path: other_classes(data, tmp_path, "train"),
            "--train and --reference have different classes",
        ),
        (too_many_classes, "of class 3, which --reference has not"),
    ],
)
def test_bad_input(data, tmp_path, capsys, make, said):
    given = make(data, tmp_path)
    assert judge(data, tmp_path / "out", **given) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("image_eval.py: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_classes_that_are_asked_for_must_be_there(data, tmp_path, capsys):
    without = npz_of(tmp_path / "without.npz", seed=1, labels=False)
    assert judge(data, tmp_path / "out", samples=without, labels="name") == 2
    assert "have no classes; leave --labels out" in capsys.readouterr().err


def test_classes_can_be_left_out(data, tmp_path):
    given = nameless(data, tmp_path) | {"labels": "none"}
    assert judge(data, tmp_path / "out", **given) == 0
    assert not {"recognised", "recognised_by_class"} & read(tmp_path / "out").keys()


# --- while training


def train(photos, data, out, **flags):
    given = {"data_dir": photos, "log_dir": out, "resume_checkpoint": "auto"} | killing.TINY
    judging = {"eval_interval": 4, "eval_samples": 50, "eval_dir": data / "test"}
    return in_process("image_train.py", given | judging | flags)


@pytest.fixture(scope="module")
def judged(photos, data, tmp_path_factory):
    """A training that was judged on the way."""
    out = tmp_path_factory.mktemp("judged") / "run"
    assert train(photos, data, out) == 0
    return out


def weights(folder):
    parts = killing.tensors(folder)
    return {name: value for name, value in parts.items() if not name.startswith("state")}


def test_judging_changes_no_bit_of_a_training(judged, photos, data, tmp_path):
    without = {"eval_interval": 0, "eval_samples": 256, "eval_dir": ""}
    assert train(photos, data, tmp_path / "without", **without) == 0
    found, plain = weights(judged), weights(tmp_path / "without")
    assert found.keys() == plain.keys()
    assert all((found[name] == plain[name]).all() for name in plain)
    found = {row["step"]: row.pop("kid") for row in killing.rows(judged)}
    # Of updates 4 and 8; the rows after them have it, of which there is one every second update.
    assert [step for step, kid in found.items() if kid] == ["4", "8"]
    assert "kid" not in killing.rows(tmp_path / "without")[0]
    # What is judged is the samples: from the same noise, but other weights.
    assert len({found["4"], found["8"]}) == 2
    book = openpyxl.load_workbook(judged / "results.xlsx")
    titles = [chart.title.tx.rich.p[0].r[0].t for chart in book["charts"]._charts]
    assert "KID of samples (EfficientNet-Lite0)" in titles


def test_a_judged_training_goes_on_to_the_bit(judged, photos, data, tmp_path):
    for end in (5, killing.STEPS):
        assert train(photos, data, tmp_path / "parts", max_steps=end) == 0
    assert killing.differences(judged, tmp_path / "parts") == []


def test_training_refuses_what_cannot_judge_or_warns_of_it(photos, data, tmp_path, capsys):
    few = killing.make_images(tmp_path / "few", count=20)
    assert train(photos, data, tmp_path / "out", eval_dir=few) == 2
    assert "--eval_dir has 20 images, too few" in capsys.readouterr().err
    assert train(data / "train", data, tmp_path / "out", eval_dir=data / "train") == 2
    assert "--eval_dir and --data_dir are the same" in capsys.readouterr().err
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in (data / "test").iterdir():
        Image.open(path).convert("L").save(grey / path.name)
    assert train(photos, data, tmp_path / "out", eval_dir=grey, max_steps=1) == 0
    said = (tmp_path / "out" / "log.txt").read_text()
    assert "images to judge by are grey, those to train on in colour" in said
