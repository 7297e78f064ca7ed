"""The figures of the judge against closed forms, plain loops, and what repeated draws do."""

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.quality import (
    RARE,
    Probe,
    Reference,
    closeness,
    frechet_distance,
    frechet_figures,
    jackknife_error,
    kernel_distance,
    manifolds,
    mean_figure,
    nearest,
)

DIMENSION = 16


def normal(seed: int, count: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    return (values * scale + shift).astype(np.float32)


REAL = Reference(normal(0, 600))


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (float(x.astype(float) @ y.astype(float)) / DIMENSION + 1) ** 3


def test_kernel_distance_is_the_mean_over_pairs():
    x, y = normal(1, 7, shift=0.5), normal(2, 9)
    within = [kernel(a, b) for i, a in enumerate(x) for b in np.delete(x, i, 0)]
    others = [kernel(a, b) for i, a in enumerate(y) for b in np.delete(y, i, 0)]
    across = np.mean([[kernel(a, b) for b in y] for a in x])
    wanted = np.mean(within) + np.mean(others) - 2 * across
    found = kernel_distance(x, Reference(y))
    assert found.value == pytest.approx(wanted, rel=1e-5)
    for leave_out in (0, 3):
        less = kernel_distance(np.delete(x, leave_out, 0), Reference(y)).value
        assert found.of_samples[leave_out] == pytest.approx(less - found.value, abs=1e-5)
        less = kernel_distance(x, Reference(np.delete(y, leave_out, 0))).value
        assert found.of_reference[leave_out] == pytest.approx(less - found.value, abs=1e-5)


def test_halves_of_one_distribution_are_at_a_distance_of_0_within_the_error():
    found = [kernel_distance(normal(seed, 200), REAL).figure for seed in range(1, 21)]
    values, errors = np.array(found).T
    assert (np.abs(values) < 3 * errors).all()
    assert abs(values.mean()) < values.std()  # not squared: it is negative about as often
    assert (values < 0).any()


@pytest.mark.parametrize("figure", ["kid", "frechet", "frechet_extrapolated", "recall", "coverage"])
def test_errors_are_the_spread_of_repeated_draws(figure):
    def draw(seed: int):
        samples = normal(seed, 200, scale=1.2, shift=0.2)
        # Another reference each time, too: both sets are drawn.
        if figure == "kid":
            return kernel_distance(samples, Reference(normal(1000 + seed, 300))).figure
        figures = manifolds if figure in ("recall", "coverage") else frechet_figures
        return getattr(figures(samples, REAL), figure)

    values, errors = np.array([draw(seed) for seed in range(40)]).T
    assert 0.7 < errors.mean() / values.std() < 1.6


def test_frechet_distance_of_gaussians_is_the_closed_form():
    mean = np.linspace(-1, 1, DIMENSION)
    variances, others = np.linspace(0.5, 3, DIMENSION), np.linspace(2, 0.1, DIMENSION)
    x, y = (exact_gaussian(seed, 400, v) for seed, v in ((1, variances), (2, others)))
    wanted = (mean**2).sum() + ((np.sqrt(variances) - np.sqrt(others)) ** 2).sum()
    assert frechet_distance(x + mean, Reference(y)) == pytest.approx(wanted, rel=1e-5)


def test_frechet_distance_of_fewer_samples_than_dimensions():
    x = normal(1, 10, scale=2.0)
    matrix = np.cov(x.T.astype(float)) @ np.cov(REAL.features.T.astype(float))
    cross = np.sqrt(np.linalg.eigvals(matrix).real.clip(0)).sum()
    gap = ((x.mean(0, dtype=float) - REAL.features.mean(0, dtype=float)) ** 2).sum()
    traces = x.astype(float).var(0, ddof=1).sum() + REAL.features.astype(float).var(0, ddof=1).sum()
    assert frechet_distance(x, REAL) == pytest.approx(gap + traces - 2 * cross, rel=1e-6)


def exact_gaussian(seed: int, count: int, variances: np.ndarray) -> np.ndarray:
    """Points whose mean is 0 and whose covariance is that diagonal, not only about."""
    points = normal(seed, count).astype(float)
    points -= points.mean(0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(points.T)))
    return points @ root * np.sqrt(variances)


def test_extrapolating_takes_most_of_the_bias_out():
    far = 2 * DIMENSION * 0.1**2  # of means 0.1 apart and deviations 1.1 and 1
    reference = Reference(normal(0, 20_000))
    found = [frechet_figures(normal(s, 300, 1.1, 0.1), reference) for s in range(1, 9)]
    plain, extrapolated = (np.mean([f[i].value for f in found]) for i in (0, 1))
    error = np.mean([f.frechet_extrapolated.error for f in found])
    assert plain > far + 2 * error
    assert abs(extrapolated - far) < error


def test_extrapolating_needs_more_samples_than_features():
    reference = Reference(normal(0, 500))
    for count, known in ((3 * DIMENSION - 1, False), (3 * DIMENSION, True)):
        figure = frechet_figures(normal(1, count), reference).frechet_extrapolated
        assert [np.isfinite(number) for number in figure] == [known, known]


def plain_manifolds(x: np.ndarray, y: np.ndarray) -> list[float]:
    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(float) - b[None].astype(float), axis=-1)

    def radius(a, k):
        return np.sort(distances(a, a), axis=1)[:, k]

    across = distances(x, y)
    third, fifth, own = radius(y, 3), radius(y, 5), radius(x, 3)
    return [
        (across <= third).any(1).mean(),
        (across <= own[:, None]).any(0).mean(),
        (across <= fifth).sum() / (5 * len(x)),
        (across.min(0) <= fifth).mean(),
    ]


def test_manifolds_are_the_published_definitions():
    x, y = normal(1, 80, scale=0.8, shift=0.3), normal(2, 90)
    found = manifolds(x, Reference(y))
    assert [figure.value for figure in found] == pytest.approx(plain_manifolds(x, y))
    assert found.precision.error == pytest.approx(
        np.sqrt(found.precision.value * (1 - found.precision.value) / 79)
    )


def figures(samples: np.ndarray, reference: Reference) -> dict[str, float]:
    both = frechet_figures(samples, reference)
    return {
        "kid": kernel_distance(samples, reference).value,
        "frechet": both.frechet.value,
        **{name: f.value for name, f in manifolds(samples, reference)._asdict().items()},
    }


def test_every_figure_gets_worse_with_more_noise():
    """As a network sees noise: all alike, and far from what real images give."""
    images, noise = normal(1, 400), normal(2, 400, scale=0.05, shift=3.0)
    shares = np.array([0, 0.3, 0.5, 0.7], np.float32)
    rows = [figures(images + share * (noise - images), REAL) for share in shares]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        worse = np.diff(values) if name in ("kid", "frechet") else -np.diff(values)
        assert worse.min() >= 0, (name, values)
        assert worse[0] > 0, (name, values)


def test_figures_do_not_depend_on_the_order_or_on_the_blocks(monkeypatch):
    samples = normal(1, 150, scale=1.1)
    wanted = figures(samples, REAL)
    shuffled = Reference(np.random.default_rng(1).permutation(REAL.features))
    monkeypatch.setattr("improved_diffusion.evaluation.quality.BLOCK", 37)
    found = figures(np.random.default_rng(0).permutation(samples), shuffled)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_nearest_finds_the_nearest():
    x, y = normal(1, 30), normal(2, 40)
    distances, indices = nearest(x, y, 3)
    plain = np.linalg.norm(x[:, None] - y[None], axis=-1)
    assert (indices == np.argsort(plain, axis=1)[:, :3]).all()
    assert distances == pytest.approx(np.sort(plain, axis=1)[:, :3], rel=1e-4)


def test_copies_are_found_and_new_images_are_none():
    train, new = normal(1, 500), normal(2, 500)
    honest = closeness(normal(3, 400), train, new)
    assert abs(honest.copies.value - RARE) < 4 * np.sqrt(RARE / 400)
    samples = normal(3, 400)
    samples[:40] = train[100:140] + 0.01
    found = closeness(samples, train, new)
    assert found.copies.value == pytest.approx(honest.copies.value + 0.1, abs=0.01)
    assert (found.indices[:40, 0] == np.arange(100, 140)).all()


def test_a_probe_recognises_what_a_line_can_tell_apart():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    centres = normal(5, 3, scale=2.0)
    features = centres[labels] + normal(6, 600)
    probe = Probe(features[:400], labels[:400])
    right = probe.recognised(features[400:], labels[400:])
    nearest_centre = np.linalg.norm(features[400:, None] - centres, axis=-1).argmin(1)
    best = (nearest_centre == labels[400:]).mean()  # of equal normal clouds, the best there is
    assert right.double().mean() > best - 0.03
    assert probe.recognised(features[400:], (labels[400:] + 1) % 3).double().mean() < 0.1


@pytest.mark.filterwarnings("error")
def test_one_image_has_a_mean_and_no_error_and_none_has_neither():
    assert [str(value) for value in mean_figure(th.tensor([True]))] == ["1.0", "nan"]
    assert np.isnan(mean_figure(th.tensor([], dtype=th.bool))).all()


def test_errors_of_independent_sets_add_up():
    a, b = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0])
    assert jackknife_error(a) == pytest.approx(np.sqrt(2 / 3 * 2))
    assert jackknife_error(a, b) == pytest.approx(np.hypot(jackknife_error(a), jackknife_error(b)))


def test_the_error_of_the_kernel_distance_is_of_both_sets():
    found = kernel_distance(normal(1, 50, shift=0.5), Reference(normal(2, 40)))
    both = jackknife_error(found.of_samples), jackknife_error(found.of_reference)
    assert min(both) > 0
    assert found.figure.error == pytest.approx(np.hypot(*both))


def test_too_few_images_for_a_figure_are_refused():
    few = normal(0, 39)
    with pytest.raises(InputError, match="5 images are too few for this figure: give 6"):
        Reference(few[:5])
    for figure, least in ((kernel_distance, 3), (frechet_figures, 40), (manifolds, 40)):
        with pytest.raises(InputError, match=f"give {least}"):
            figure(few[: least - 1], Reference(few))
