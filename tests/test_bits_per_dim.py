import csv
import math

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook

from improved_diffusion.bits_per_dim import (
    COLUMNS,
    TERMS,
    BpdTable,
    draw_timesteps,
    estimate_bpd,
    save_table,
    strata_bounds,
)
from improved_diffusion.errors import InputError
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
    t, lengths = draw_timesteps(bounds, 4000)
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


def test_the_estimate_is_unbiased_and_precise(diffusion):
    th.manual_seed(0)
    x_start = images(4000)
    whole = diffusion.calc_bpd_loop(model, x_start[:400])["total_bpd"].mean()
    for count in (1, 4, 15):
        totals = estimate_bpd(diffusion, model, x_start, count)["total_bpd"]
        error = totals.std() / math.sqrt(len(totals))
        assert abs(totals.mean() - whole) < 4 * error + 0.01
        if count == 15:
            assert totals.std() < 0.2 * whole, "ranges of one weight would need fewer timesteps"


def test_as_many_ranges_as_timesteps_are_the_bound(diffusion):
    th.manual_seed(0)
    out = estimate_bpd(diffusion, model, images(300), 60)
    whole = diffusion.calc_bpd_loop(model, images(300))
    assert out["t"][0].tolist() == list(range(60))
    assert th.allclose(out["total_bpd"], out["vb"].sum(dim=1) + out["prior_bpd"])
    for name in TERMS:
        mine, theirs = out[name].mean(dim=0), whole[name].flip(1).mean(dim=0)
        assert th.allclose(mine, theirs, rtol=0.1, atol=1e-3)


def test_a_table_gathers_batches(diffusion, tmp_path):
    th.manual_seed(0)
    table = BpdTable(diffusion)
    parts = [estimate_bpd(diffusion, model, images(n), 8) for n in (3, 2)]
    for part in parts:
        table.add(part)
    totals = th.cat([part["total_bpd"] for part in parts])
    assert table.mean == pytest.approx(float(totals.mean()))
    assert table.standard_error == pytest.approx(float(totals.std() / math.sqrt(5)))
    t, vb = (th.cat([part[name] for part in parts]).flatten() for name in ("t", "vb"))
    for row in table.rows():
        assert row[COLUMNS.index("images")] == int((t == row[0]).sum())
        assert row[COLUMNS.index("vb")] == pytest.approx(float(vb[t == row[0]].mean()))
    alpha_bar = diffusion.alphas_cumprod[0]
    assert table.rows()[0][:3] == (
        0,
        alpha_bar,
        pytest.approx(math.log(alpha_bar / (1 - alpha_bar))),
    )
    assert np.isnan(table.means("vb")[table.counts == 0]).all()

    path = save_table(str(tmp_path), table, {"model": "m.pt"})
    with open(tmp_path / "bits_per_dim.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mse"]) for row in rows] == [
        row[COLUMNS.index("mse")] for row in table.rows()
    ]
    book = load_workbook(path)
    assert book.sheetnames == ["summary", "charts", "metrics"]
    assert len(book["charts"]._charts) == 3
    assert book["metrics"].max_row == len(rows) + 1
    said = {row[0].value: row[1].value for row in book["summary"].iter_rows(min_row=3)}
    assert said["bits/dim"] == pytest.approx(table.mean)
    assert said["images"] == 5
    assert said["model"] == "m.pt"


def test_one_image_has_no_standard_error(diffusion, tmp_path):
    table = BpdTable(diffusion)
    table.add(estimate_bpd(diffusion, model, images(1), 5))
    assert math.isnan(table.standard_error)
    save_table(str(tmp_path), table, {})
