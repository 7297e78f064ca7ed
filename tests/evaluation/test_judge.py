"""What a judgement calls its figures, and what its probe may see."""

from types import SimpleNamespace

import numpy as np
import pytest

from improved_diffusion.data.image_source import Labels
from improved_diffusion.evaluation import judge
from improved_diffusion.evaluation.image_sets import in_memory
from improved_diffusion.evaluation.quality import Reference, frechet_figures


@pytest.mark.parametrize(
    ("name", "is_fid", "title"),
    [
        ("kid", True, "KID"),
        ("frechet", True, "FID"),
        ("frechet_extrapolated", True, "FID of infinitely many samples"),
        ("kid", False, "KID (Tiny)"),
        ("frechet", False, "Fréchet distance (Tiny)"),
    ],
)
def test_only_by_the_network_of_fid_figures_have_its_name(name, is_fid, title):
    extractor = SimpleNamespace(title="Tiny", is_fid=is_fid)
    assert judge._title(name, extractor) == title


def test_the_probe_is_tried_on_images_that_it_has_not_seen():
    """Of features that say nothing it recognises what it has seen, and nothing else."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 300)).astype(np.float32)
    numbers = rng.integers(0, 4, 400)
    images = SimpleNamespace(labels=Labels(list("abcd"), numbers, "name"))
    line, classes = judge._recognised(features, numbers, Reference(features), images, None, None)
    assert line.samples.value > 0.7  # the samples are the images, of which it has seen most
    assert abs(line.real.value - 0.25) < 3 * line.real.error
    assert line.noise.value == 0.25
    shares = [each.samples.value for each in classes.values()]
    assert sorted(classes) == list("abcd")
    assert shares == sorted(shares, reverse=True)
    assert np.average(shares, weights=[(numbers == "abcd".index(c)).sum() for c in classes]) == (
        pytest.approx(line.samples.value)
    )


def tiny_extractor():
    precision = SimpleNamespace(name="fp32")
    return SimpleNamespace(title="Tiny", is_fid=False, precision=precision, fingerprint="")


def test_samples_whose_classes_take_turns_have_errors_as_in_no_order(monkeypatch):
    """Errors are by groups of every tenth sample, each of which would be of one class."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8)) * 3

    def draw(count):
        return (centres[np.arange(count) % 10] + rng.normal(size=(count, 8))).astype(np.float32)

    sets = [in_memory(np.zeros((count, 1, 1, 3), np.uint8)) for count in (400, 600)]
    monkeypatch.setattr(judge, "check_apart", lambda **_: None)
    monkeypatch.setattr(judge, "kept_features", lambda *_: draw(600))
    monkeypatch.setattr(judge, "features_of", lambda _, images: draw(len(images)))
    extractor = tiny_extractor()
    lines = judge.judge(extractor, *sets, spare="").lines
    frechet = frechet_figures(rng.permutation(draw(400)), Reference(draw(600))).frechet
    assert lines["frechet"].samples.error < 3 * frechet.error


@pytest.mark.parametrize(
    ("samples", "reference", "train", "real"),
    [
        (100, 400, 0, 100),
        (300, 400, 0, 200),
        (100, 400, 150, 100),
        (100, 400, 60, 60),
        (100, 80, 0, 0),
    ],
)
def test_real_images_stand_in_for_samples_only_where_they_are_as_many(
    samples, reference, train, real, monkeypatch
):
    """Of fewer, only the kernel distance says the same."""
    rng = np.random.default_rng(0)
    sets = [
        in_memory(np.zeros((count, 1, 1, 3), np.uint8)) if count else None
        for count in (samples, reference, train)
    ]

    def draw(_, images, *spare):
        return rng.normal(size=(len(images), 8)).astype(np.float32)

    monkeypatch.setattr(judge, "check_apart", lambda **_: None)
    monkeypatch.setattr(judge, "kept_features", draw)
    monkeypatch.setattr(judge, "features_of", draw)
    monkeypatch.setattr(judge, "_pairs", lambda *_: None)
    extractor = tiny_extractor()
    found = judge.judge(extractor, *sets, spare="").as_dict()
    assert found["num_real"] == real
    assert found["num_real_reference"] == (reference if train else reference - real)
    assert (found["kid_real"] is None) == (real == 0)
    for name in ("frechet", "precision", "recall", "density", "coverage"):
        assert (found[f"{name}_real"] is None) == (real < samples)
