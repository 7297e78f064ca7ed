import json
import math

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook
from tiny_runs import rows_of

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.bits_per_dim import (
    TERMS,
    BpdTable,
    draw_timesteps,
    estimate_bpd,
    strata_bounds,
)
from improved_diffusion.reports.bpd_report import save_table
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import create_gaussian_diffusion


@given(st.integers(1, 3000).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t))))
def test_ranges_cover_every_timestep_once(sizes):
    timesteps, count = sizes
    bounds = strata_bounds(timesteps, count)
    assert len(bounds) == count + 1
    assert (bounds[0], bounds[-1]) == (0, timesteps)
    assert (np.diff(bounds) >= 1).all()
    if count > 1:
        assert bounds[1] == 1  # the likelihood of the pixels is never left out


@pytest.mark.parametrize("count", [0, -1, 11])
def test_impossible_counts_are_refused(count):
    with pytest.raises(InputError, match=r"num_timesteps must lie in 1\.\.10, got"):
        strata_bounds(10, count)


def test_timesteps_are_uniform_in_their_range():
    bounds = strata_bounds(100, 6)
    t, lengths = draw_timesteps(bounds, ImageNoise(0, range(4000)))
    assert lengths.tolist() == np.diff(bounds).tolist()
    for column, first, end in zip(t.T, bounds[:-1], bounds[1:], strict=True):
        counts = column.bincount(minlength=end)
        assert counts[:first].sum() == 0
        assert len(counts) == end
        expected = 4000 / (end - first)
        assert (abs(counts[first:] - expected) < 6 * math.sqrt(expected) + 1).all()


@pytest.fixture(scope="module")
def diffusion():
    return create_gaussian_diffusion(steps=60, noise_schedule="linear")


def model(x, t):
    return 0.8 * x


def images(count):
    generator = th.Generator().manual_seed(1)
    one = th.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    return one.expand(count, -1, -1, -1)


def estimate(diffusion, count, timesteps, seed=0):
    noise = ImageNoise(seed, range(count))
    return estimate_bpd(diffusion, model, images(count), timesteps, noise=noise)


@pytest.mark.slow
def test_the_estimate_is_unbiased_and_precise(diffusion):
    th.manual_seed(0)
    x_start = images(4000)
    whole = diffusion.calc_bpd_loop(model, x_start[:400])["total_bpd"].mean()
    for count in (1, 4, 15):
        totals = estimate(diffusion, len(x_start), count)["total_bpd"]
        error = totals.std() / math.sqrt(len(totals))
        assert abs(totals.mean() - whole) < 4 * error + 0.01
        if count == 15:
            assert totals.std() < 0.2 * whole, "ranges of one weight would need fewer timesteps"


def test_as_many_ranges_as_timesteps_are_the_bound(diffusion):
    th.manual_seed(0)
    out = estimate(diffusion, 300, 60)
    whole = diffusion.calc_bpd_loop(model, images(300))
    assert out["t"][0].tolist() == list(range(60))
    assert th.allclose(out["total_bpd"], out["vb"].sum(dim=1) + out["prior_bpd"])
    for name in TERMS:
        mine, theirs = out[name].mean(dim=0), whole[name].flip(1).mean(dim=0)
        assert th.allclose(mine, theirs, rtol=0.1, atol=1e-3)


def test_a_table_gathers_batches(diffusion, tmp_path):
    table = BpdTable(diffusion)
    parts = [estimate(diffusion, count, 8, seed=count) for count in (3, 2)]
    for part in parts:
        table.add(part)
    totals = th.cat([part["total_bpd"] for part in parts])
    assert table.mean == pytest.approx(float(totals.mean()))
    assert table.standard_error == pytest.approx(float(totals.std() / math.sqrt(5)))
    t, vb = (th.cat([part[name] for part in parts]).flatten() for name in ("t", "vb"))
    frame = table.frame()
    for row in frame.itertuples():
        assert row.images == int((t == row.t).sum())
        assert row.vb == pytest.approx(float(vb[t == row.t].mean()))
    alpha_bar = diffusion.alphas_cumprod[0]
    assert frame["t"][0] == 0
    assert frame["log_snr"][0] == pytest.approx(math.log(alpha_bar / (1 - alpha_bar)))
    assert np.isnan(table.means("vb")[table.counts == 0]).all()

    path = save_table(str(tmp_path), table, {"model": "m.pt"})
    rows = rows_of(tmp_path / "bits_per_dim.csv")
    for name in frame:
        assert [float(row[name]) for row in rows] == frame[name].tolist()
    book = load_workbook(path)
    assert book.sheetnames == ["summary", "metrics"]
    assert book["metrics"].max_row == len(rows) + 1
    said = {row[0].value: row[1].value for row in book["summary"].iter_rows(min_row=3)}
    assert said["bits/dim"] == pytest.approx(table.mean)
    assert said["images"] == 5
    assert said["model"] == "m.pt"
    rows = rows_of(tmp_path / "bits_per_dim_images.csv")
    assert [row["image"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [float(row["bits/dim"]) for row in rows] == table.totals
    summary = json.loads((tmp_path / "bits_per_dim.json").read_text())
    assert summary["standard error"] == pytest.approx(table.standard_error)
    assert summary["timesteps of each"] == 8


def test_an_image_has_the_same_bits_in_any_batch(diffusion):
    x_start = images(5)
    whole = estimate(diffusion, 5, 7)
    noise = ImageNoise(0, range(2, 5))
    part = estimate_bpd(diffusion, model, x_start[2:], 7, noise=noise)
    assert th.equal(whole["t"][2:], part["t"])
    assert th.allclose(whole["total_bpd"][2:], part["total_bpd"])
    assert len(whole["total_bpd"].unique()) == 5


def test_the_last_batch_may_be_cut(diffusion):
    table = BpdTable(diffusion)
    table.add(estimate(diffusion, 5, 4), at_most=3)
    assert len(table.totals) == 3
    assert table.counts.sum() == 12


def test_what_is_not_finite_is_shown_as_such(diffusion, tmp_path):
    table = BpdTable(diffusion)
    table.add({**estimate(diffusion, 2, 4), "vb": th.full((2, 4), math.inf)})
    table.totals = [math.nan, 1.0]
    save_table(str(tmp_path), table, {})
    assert json.loads((tmp_path / "bits_per_dim.json").read_text())["bits/dim"] is None


def test_one_image_has_no_standard_error(diffusion, tmp_path):
    table = BpdTable(diffusion)
    table.add(estimate(diffusion, 1, 5))
    assert math.isnan(table.standard_error)
    save_table(str(tmp_path), table, {})
