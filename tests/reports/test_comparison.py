import csv
import itertools
import json
import math
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch as th
from openpyxl import load_workbook

from improved_diffusion.data.image_grid import save_grid
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.bits_per_dim import BpdTable, estimate_bpd
from improved_diffusion.evaluation.judge import Line, Verdict
from improved_diffusion.evaluation.quality import (
    FIGURES_OF_ALL,
    Figure,
    Reference,
    kernel_distance,
)
from improved_diffusion.reports import comparison, comparison_report, plots
from improved_diffusion.reports.bpd_report import save_table
from improved_diffusion.reports.verdict_report import save_verdict
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import create_gaussian_diffusion

pytest.importorskip("matplotlib", reason="comparing draws with matplotlib")

ROWS = 120
QUARTERS = [f"mse_q{q}" for q in range(4)]


def judge(folder, seed, *, count=60, scale=1.0):
    """What image_eval.py would leave in that folder of samples with features of that scale."""
    rng = np.random.default_rng(0)
    reference = Reference(rng.standard_normal((90, 8)).astype(np.float32))
    shared = rng.standard_normal((count, 8))  # of samples from the same noise
    own = np.random.default_rng(seed).standard_normal((count, 8)) * 0.2
    kernel = kernel_distance((scale * (shared + own)).astype(np.float32), reference)
    unknown = Figure(math.nan, math.nan)
    lines = {
        name: Line(title, Figure(0.5, 0.1), unknown, unknown)
        for name, title in FIGURES_OF_ALL.items()
    }
    lines["kid"] = Line("KID", kernel.figure, unknown, unknown)
    about = {"features": "Tiny", "num_samples": count, "num_reference": 90}
    about |= {"names of reference images, sha256": "0b", "features, sha256": "0c"}
    about |= {"size": 8, "channels": 3}
    folder.mkdir(parents=True)
    save_verdict(str(folder), Verdict(lines, about, kernel, None), {})


def make_run(folder, schedule="linear", scale=1.0, evaluated=("nll",), pictured=("ddpm",)):
    """The folder of a run with a log, bits/dim and samples."""
    folder.mkdir(parents=True)
    names = ["step", "loss", "mse", "grad_norm", *QUARTERS, "wall_time"]
    with open(folder / "progress.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(ROWS):
            loss = scale / (i + 1)
            quarters = [loss * (4 - q) if (i + q) % 3 else "" for q in range(4)]
            writer.writerow([10 * i, loss, loss, 2 * loss, *quarters, 1.5 * (i + 1)])
    flags = {"noise_schedule": schedule, "poly_power": 2.0, "precision": "bf16"}
    (folder / "config.json").write_text(json.dumps({"flags": flags}))
    diffusion = create_gaussian_diffusion(steps=40, noise_schedule=schedule)
    for name in evaluated:
        (folder / name).mkdir()
        table = BpdTable(diffusion)
        th.manual_seed(0)
        x_start = th.rand(6, 3, 4, 4) * 2 - 1
        noise = ImageNoise(0, range(6))
        table.add(estimate_bpd(diffusion, lambda x, t: scale * x, x_start, 20, noise=noise))
        save_table(str(folder / name), table, {"names of images, sha256": "0a", "seed": 0})
    for name in pictured:
        (folder / name).mkdir()
        pixels = np.full((4, 8, 8, 3), int(100 * scale), dtype=np.uint8)
        save_grid(folder / name / "samples_4x8x8x3.png", pixels)
    return folder


@pytest.fixture
def runs(tmp_path):
    one = make_run(tmp_path / "one", pictured=("ddpm", "dpmpp"))
    two = make_run(tmp_path / "two", schedule="polynomial", scale=0.5)
    return [comparison.read_run(folder) for folder in (one, two)]


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, instead of files."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    return drawn


def test_a_run_is_read_with_all_that_lies_in_it(runs):
    one, two = runs
    assert one.name == "one"
    assert len(one.log) == ROWS
    assert math.isnan(one.log["mse_q0"][0])
    assert [e.name for e in one.evaluations] == ["nll"]
    assert list(one.pictures) == ["ddpm", "dpmpp"]
    assert one.evaluations[0].summary["images"] == 6
    assert two.config["flags"]["noise_schedule"] == "polynomial"


def test_facts(runs):
    facts = comparison.facts(runs[1])
    assert facts["schedule"] == "polynomial, power 2"
    assert facts["updates"] == 10 * (ROWS - 1) + 1
    assert facts["hours"] == pytest.approx(1.5 * ROWS / 3600)
    log = pd.concat([runs[1].log, runs[1].log])  # resumed without its state: the time begins anew
    again = comparison.facts(runs[1]._replace(log=log))
    assert again["hours"] == pytest.approx(2 * facts["hours"])
    tail = [0.5 / (i + 1) for i in range(ROWS - 12, ROWS)]
    assert facts["loss, last tenth"] == pytest.approx(np.mean(tail))


def test_curves_are_means_of_the_rows_before(runs):
    curve = comparison.smoothed(runs[0].log)
    assert curve["loss"][9] == pytest.approx((1 / 9 + 1 / 10) / 2)  # 120 // 50 rows
    assert curve["step"].tolist() == runs[0].log["step"].tolist()


def test_what_is_measured_now_and_then_is_a_line_too(figures, runs, tmp_path):
    kid = np.where(np.arange(ROWS) % 40 == 39, 0.5, math.nan)
    many = [run._replace(log=run.log.assign(kid=kid)) for run in runs]
    assert comparison.smoothed(many[0].log)["kid"].count() == 3
    comparison_report.save_curves(many, tmp_path / "curves.png")
    (panel,) = (axes for axes in figures[0].axes if axes.get_ylabel().startswith("kid"))
    assert [len(line.get_xdata()) for line in panel.get_lines()] == [3, 3]
    assert np.isfinite(panel.get_lines()[0].get_ydata()).all()


def test_errors_are_read_off_at_a_log_snr_wherever_the_timesteps_are():
    def line(places):
        return np.array([[place, 3 + 2 * place, 5] for place in places])

    for places in ([0.1, 0.7, 1.8], [-7.0, 9.0], [-0.4, 0.9, 4.0]):
        assert comparison.error_at(line(places), 1.0) == pytest.approx(5.0)
    assert comparison.error_at(line([1.0]), 1.0) == pytest.approx(5.0)
    assert math.isnan(comparison.error_at(line([1.1, 1.5]), 1.0))
    assert math.isnan(comparison.error_at(line([0.1, 0.9]), 1.0))


def test_timesteps_count_as_often_as_they_were_drawn():
    terms = np.array([[0.0, 1.0, 900], [0.0, 11.0, 100]])
    assert comparison.error_at(terms, 0.0) == pytest.approx(2.0)


def test_errors_of_all_runs_share_their_places(runs):
    table = comparison.error_table(runs)
    assert list(table) == ["log-SNR", "one, nll", "two, nll"]
    assert (table["log-SNR"] % 2 == 1).all()
    assert (np.diff(table["log-SNR"]) == 2).all()
    for run in runs:
        terms = run.evaluations[0].terms
        for place, value in zip(table["log-SNR"], table[f"{run.name}, nll"], strict=True):
            inside = terms[:, 0].min() <= place <= terms[:, 0].max()
            assert math.isfinite(value) == inside


def test_errors_in_bits_do_not_depend_on_the_schedule():
    """The best prediction of independent normal pixels errs by alpha_bar, whatever the schedule."""

    def bits(schedule):
        ab = create_gaussian_diffusion(steps=1000, noise_schedule=schedule).alphas_cumprod
        return comparison.error_bits(np.stack([np.log(ab / (1 - ab)), ab, ab * 0 + 1], 1), -9, 9)

    area = np.log1p(np.exp(9.0)) - np.log1p(np.exp(-9.0))  # of the logistic function
    for schedule in ("linear", "cosine", "polynomial"):
        assert bits(schedule) == pytest.approx(area / (2 * np.log(2)), rel=2e-3)


def test_differences_are_taken_image_by_image(runs):
    one, two = (run.evaluations[0] for run in runs)
    mean, error = comparison.paired_difference(two, one)
    gaps = two.images - one.images
    assert len(gaps) == 6
    assert mean == pytest.approx(two.summary["bits/dim"] - one.summary["bits/dim"])
    assert error == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(6))
    table = comparison.difference_table(runs)
    assert table["run"].tolist() == ["two"]
    assert table["difference"].tolist() == [mean]
    others = (
        two._replace(images=two.images[:5]),
        two._replace(images=np.array([])),
        two._replace(summary={**two.summary, "seed": 1}),
        two._replace(summary={**two.summary, "names of images, sha256": "0b"}),
    )
    assert [comparison.paired_difference(other, one) for other in others] == [None] * 4
    nameless = {key: value for key, value in one.summary.items() if "names" not in key}
    of_unknown = (e._replace(summary=nameless) for e in (one, two))
    assert comparison.paired_difference(*of_unknown) is None


def rounded(value):
    if not isinstance(value, float):
        return value
    return round(value, 9) if math.isfinite(value) else None


@pytest.mark.slow
def test_kernel_distances_are_compared_sample_by_sample(tmp_path):
    folders = [make_run(tmp_path / name) for name in "abc"]
    for seed, (folder, scale) in enumerate(zip(folders, (1.0, 1.3, 1.3), strict=True)):
        judge(folder / "judged", seed, scale=scale, count=50 if seed == 2 else 60)
    runs = [comparison.read_run(folder) for folder in folders]
    ((first,), (second,)) = (run.judgements for run in runs[:2])
    table = comparison.quality_table(runs)
    assert list(table["run"]) == ["a", "b", "c"]
    assert list(table["kid"]) == [run.judgements[0].figures["kid"] for run in runs]
    assert table["kid_error"].min() > 0
    assert "recognised" not in table
    (row,) = comparison.kernel_table(runs).to_dict("records")  # c has another number of samples
    assert (row["run"], row["less"], row["evaluation"]) == ("b", "a", "judged")
    assert row["features"] == first.figures["features"]
    assert row["difference"] == second.figures["kid"] - first.figures["kid"]
    apart = math.hypot(first.figures["kid_error"], second.figures["kid_error"])
    assert 0 < row["standard error"] < 0.8 * apart
    assert "How good the samples are" in comparison.tables(runs)


def test_the_workbook(runs, tmp_path):
    pictures = {name: tmp_path / f"{name}.png" for name in ("curves", "samples")}
    comparison_report.save_curves(runs, pictures["curves"])
    comparison_report.save_samples(runs, pictures["samples"])
    comparison_report.save_workbook(runs, tmp_path / "x.xlsx", pictures, "of copies")
    book = load_workbook(tmp_path / "x.xlsx")
    assert book.sheetnames == ["summary", "curves", "samples"]
    assert [sheet["A2"].value for sheet in book] == ["of copies"] * 3
    assert [len(sheet._images) for sheet in book] == [0, 1, 1]
    cells = {rounded(cell) for row in book["summary"].values for cell in row}
    assert {comparison.WARNING, *comparison.tables(runs)} <= cells
    for table in comparison.tables(runs).values():
        assert set(table) <= cells
        assert {rounded(value) for value in table.to_numpy().flat} <= cells | {None}


@pytest.mark.slow
def test_a_model_that_diverged_does_not_keep_others_from_being_compared(tmp_path):
    bad = make_run(tmp_path / "$bad_ [lr:0.1]", scale=math.nan, pictured=())
    good = make_run(tmp_path / "_good")
    summary = json.loads((bad / "nll" / "bits_per_dim.json").read_text())
    summary |= {"bits/dim": None, "standard error": None}
    (bad / "nll" / "bits_per_dim.json").write_text(json.dumps(summary))
    rows = (bad / "nll" / "bits_per_dim.csv").read_text().splitlines()
    nans = [",".join([*row.split(",")[:4], "nan", "nan", "nan"]) for row in rows[1:]]
    (bad / "nll" / "bits_per_dim.csv").write_text("\n".join([rows[0], *nans]) + "\n")
    runs = [comparison.read_run(folder) for folder in (bad, good)]
    table = comparison.bits_table(runs)
    assert math.isnan(table["bits/dim"][0])
    column = next(name for name in table if name.startswith("by the errors"))
    assert math.isnan(table[column][0])
    assert table[column][1] > 0
    comparison_report.save_workbook(runs, tmp_path / "x.xlsx", {})
    comparison_report.save_curves(runs, tmp_path / "curves.png", "costs $5 or $\\bad$")


@pytest.mark.slow
def test_mse_has_a_panel_where_it_is_not_the_loss(runs, figures):
    learned = runs[0]._replace(log=runs[0].log.assign(mse=runs[0].log["loss"] / 2))
    for compared in (runs, [learned]):
        comparison_report.save_curves(compared, "curves.png")
    same, apart = ([axes.get_title(loc="left") for axes in f.axes if axes.axison] for f in figures)
    assert same[:2] == ["Training loss and mse (do not compare)", "Gradient norm"]
    assert apart[:2] == ["Training loss (do not compare)", "Training mse (do not compare)"]
    assert apart[2:] == [*same[1:8], f"The same, relative to {runs[0].name}"]


def test_names_are_drawn_as_they_are(runs, figures):
    """Neither dollar signs nor a line at the front mean anything."""
    renamed = [run._replace(name=name) for run, name in zip(runs, ("_a", "$b$"), strict=True)]
    comparison_report.save_curves(renamed, "curves.png", "costs $5 or $6")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["_a", "$b$"]
    texts = [*legend.get_texts(), figures[0]._supxlabel, figures[0].axes[7]._left_title]
    assert not any(text.get_parse_math() for text in texts)
    assert figures[0].get_supxlabel() == "costs $5 or $6"


def test_an_evaluation_of_one_name_is_drawn_for_all(tmp_path, figures):
    one = comparison.read_run(make_run(tmp_path / "one", evaluated=("nll", "nll_b")))
    two = comparison.read_run(make_run(tmp_path / "two", evaluated=("nll_b",), scale=0.5))
    comparison_report.save_curves([one, two], "curves.png")
    bits, errors = (axes.get_title(loc="left") for axes in figures[0].axes[6:8])
    assert bits.endswith("test images, ± 2 standard errors")
    assert int(bits.split()[0]) > 0
    assert errors == "Error at equal log-SNR, nll_b"


def test_points_stand_at_the_evaluations_or_those_of_a_single_one_by_run(tmp_path, figures):
    one = comparison.read_run(make_run(tmp_path / "one", evaluated=("nll", "nll_b")))
    two = comparison.read_run(make_run(tmp_path / "two", evaluated=("nll_b",), scale=0.5))
    comparison_report.save_curves([one, two], "curves.png")
    panel = figures.pop().axes[6]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["nll", "nll_b"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("", "bits/dim")
    alone = one._replace(evaluations=one.evaluations[:1])
    of_two = two._replace(evaluations=[two.evaluations[0]._replace(name="nll")])
    comparison_report.save_curves([alone, of_two], "curves.png")
    panel = figures.pop().axes[6]
    bits = {run.name: run.evaluations[0].summary["bits/dim"] for run in (alone, of_two)}
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == sorted(bits, key=bits.get)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("bits/dim, nll", "")


def test_runs_of_more_than_all_colours_are_points_alone(tmp_path, figures):
    folder = make_run(tmp_path / "one", evaluated=("nll", "nll_b"))
    run = comparison.read_run(folder)
    figure = {"features": "Net", "num_samples": 60, "kid_error": 0.01, "recognised_error": 0.01}
    empty = np.array([])
    many = []
    for number in range(len(plots.COLOURS) + 1):
        values = {"kid": 0.1 + (number * 3 % 7) / 10, "recognised": 0.1 + (number * 5 % 7) / 10}
        judged = comparison.Judgement("judged", figure | values, empty, empty)
        many.append(run._replace(name=f"run{number}", judgements=[judged]))
    comparison_report.save_curves(many[:-1], "curves.png")
    assert figures.pop().axes[0].get_title(loc="left").startswith("Training loss")
    comparison_report.save_curves(many, "curves.png")
    panels = [axes for axes in figures[0].axes if axes.axison]
    axes = ["bits/dim, nll", "bits/dim, nll_b", "KID (Net), judged", "share recognised, judged"]
    assert [panel.get_xlabel() for panel in panels] == axes
    for panel, key, best_first in ((panels[2], "kid", 1), (panels[3], "recognised", -1)):
        names = [text.get_text() for text in panel.get_yticklabels()]
        ranked = sorted(many, key=lambda run: best_first * run.judgements[0].figures[key])
        assert names == [run.name for run in ranked]
    summary = run.evaluations[0].summary | {"bits/dim": math.nan}
    bad = run._replace(name="bad", evaluations=[run.evaluations[0]._replace(summary=summary)])
    comparison_report.save_curves([many[0], bad, *many[1:]], "curves.png")
    names = [text.get_text() for text in figures.pop().axes[0].get_yticklabels()]
    assert names == [*(each.name for each in many), "bad"]
    comparison_report.save_curves([run._replace(evaluations=[])] * 7, "curves.png")
    assert figures[1].axes[0].get_title(loc="left").startswith("Training loss")


def points_of(panel):
    """Values and standard errors of a panel's points, from top to bottom."""
    drawn = sorted(panel.containers, key=lambda points: points[0].get_ydata()[0])
    bars = [points[2][0].get_segments()[0][:, 0] for points in drawn]
    return [points[0].get_xdata()[0] for points in drawn], [np.ptp(bar) / 4 for bar in bars]


def test_judgements_are_drawn_with_their_errors(runs, figures):
    empty = np.array([])
    judged = [
        comparison.Judgement("judged", {"features": "Net", "num_samples": 60, **more}, empty, empty)
        for more in (
            {"kid": 0.2, "kid_error": 0.01, "recognised": 0.5, "recognised_error": 0.02},
            {"kid": 0.1, "kid_error": 0.03},
        )
    ]
    alone = [
        run._replace(evaluations=[], judgements=[each])
        for run, each in zip(runs, judged, strict=True)
    ]
    comparison_report.save_curves(alone, "curves.png")
    *_, kid, recognised = (axes for axes in figures[0].axes if axes.axison)
    titles = {axes.get_title(loc="left") for axes in (kid, recognised)}
    assert titles == {"60 samples, ± 2 standard errors"}
    labels = [panel.get_xlabel() for panel in (kid, recognised)]
    assert labels == ["KID (Net), judged", "share recognised, judged"]
    assert points_of(kid) == ([0.1, 0.2], pytest.approx([0.03, 0.01]))
    assert points_of(recognised) == ([0.5], pytest.approx([0.02]))


@pytest.mark.parametrize("key", comparison.ALIKE)
def test_judgements_by_other_images_or_networks_are_not_compared(key, tmp_path):
    for name in ("one", "two"):
        judge(make_run(tmp_path / name) / "judged", seed=len(name))
    one, two = (comparison.read_run(tmp_path / name).judgements[0] for name in ("one", "two"))
    assert comparison.kernel_difference(one, two) is not None
    other = two._replace(figures={**two.figures, key: "another"})
    assert comparison.kernel_difference(one, other) is None


def test_grids_of_many_runs_stand_in_several_rows(runs, figures):
    many = [runs[0]._replace(name=f"run{number}") for number in range(5)]
    comparison_report.save_samples(many, "samples.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert titles == [
        *(f"run{number}: ddpm" for number in range(5)),
        "",
        *(f"run{number}: dpmpp" for number in range(5)),
        "",
    ]


def test_of_many_judged_runs_grids_from_the_best_to_the_worst_are_shown(runs, figures):
    empty = np.array([])
    many = []
    for number in (3, 0, 7, 10, 1, 9, 2, 8, 6, 5, 4):
        judged = comparison.Judgement("judged", {"kid": number / 10}, empty, empty)
        run = runs[0]._replace(name=f"run{number}", judgements=[judged])
        many.append(run._replace(pictures={"ddpm": run.pictures["ddpm"]}))
    comparison_report.save_samples(many, "samples.png")
    titles = [axes.get_title(loc="left") for axes in figures.pop().axes]
    assert titles == [f"run{number}: ddpm" for number in (0, 1, 3, 4, 6, 7, 9, 10)]
    comparison_report.save_samples([*many, runs[0]], "samples.png")  # one that nobody judged
    assert len([axes for axes in figures[0].axes if axes.get_title(loc="left")]) > len(many)


def test_the_newest_grid_of_a_folder_is_shown(tmp_path):
    folder = make_run(tmp_path / "one")
    newer = folder / "ddpm" / "samples_16x8x8x3.png"
    save_grid(newer, np.zeros((4, 8, 8, 3), dtype=np.uint8))
    os.utime(folder / "ddpm" / "samples_4x8x8x3.png", (1, 1))
    assert comparison.read_run(folder).pictures["ddpm"] == newer


def test_a_judgement_that_was_cut_short_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    judge(run / "judged", 0)
    (run / "judged" / "evaluation.json").write_text('{"features": "Tiny"}')
    with pytest.raises(InputError, match="is no judgement of samples: no num_samples"):
        comparison.read_run(run)
    judge(run / "other", 0)
    whole = json.loads((run / "other" / "evaluation.json").read_text())
    for damage, said in (({"kid": "x"}, "no number kid"), ({"num_samples": 5}, "no samples")):
        (run / "judged" / "evaluation.json").write_text(json.dumps(whole | damage))
        with pytest.raises(InputError, match=said):
            comparison.read_run(run)
    (run / "judged" / "evaluation.json").write_text(json.dumps(whole))
    np.savez(run / "judged" / "evaluation.npz", samples=np.zeros(60, "U1"), reference=np.ones(90))
    with pytest.raises(InputError, match="no numbers samples"):
        comparison.read_run(run)
    (run / "judged" / "evaluation.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"evaluation\.npz is no whole \.npz"):
        comparison.read_run(run)


def test_what_somebody_changed_is_shown_as_it_is(tmp_path):
    one, two = (make_run(tmp_path / name) for name in ("one", "two"))
    flags = {"noise_schedule": "polynomial", "poly_power": "x", "precision": {"a": [1]}}
    (two / "config.json").write_text(json.dumps({"flags": flags}))
    table = two / "nll" / "bits_per_dim.csv"
    rows = csv.DictReader(table.read_text().splitlines())
    lines = [f"{row['log_snr']},{row['mse']},0\n" for row in rows]  # of no images
    table.write_text("log_snr,mse,images\n" + "".join(lines))
    read = [comparison.read_run(folder) for folder in (one, two)]
    comparison_report.save_workbook(read, tmp_path / "c.xlsx", {})
    cells = [cell for row in load_workbook(tmp_path / "c.xlsx")["summary"].values for cell in row]
    assert {"polynomial, power x", "{'a': [1]}"} <= set(cells)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_and_texts_that_are_no_unicode(tmp_path):
    run = make_run(tmp_path / "run\udcff", evaluated=("nll\udcff",))
    (run / "config.json").write_text('{"flags": {"precision": "\\ud800"}}')
    log = (run / "progress.csv").read_bytes()
    (run / "progress.csv").write_bytes(log.replace(b"grad_norm", b"grad\xff", 1))
    comparison_report.save_workbook([comparison.read_run(run)], tmp_path / "c.xlsx", {})
    cells = [cell for row in load_workbook(tmp_path / "c.xlsx")["summary"].values for cell in row]
    assert {"run?", "nll?", "?"} <= set(cells)


def test_what_is_being_written_is_read_whole_or_not_at_all(tmp_path, monkeypatch):
    run, original, reads = tmp_path / "run", os.replace, []

    def replace_and_read(*paths):
        original(*paths)
        reads.append(comparison.read_run(run))

    monkeypatch.setattr(os, "replace", replace_and_read)
    make_run(run)
    judge(run / "judged", 0)
    assert [len(read.judgements) for read in reads][-3:] == [0, 1, 1]  # npz, json, xlsx


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("progress.csv", "", "has no lines yet"),
        ("progress.csv", "step,loss\n", "has no lines yet"),
        ("progress.csv", "a,b\n1,2\n", "has no step and loss"),
        ("progress.csv", "step,loss\n1,2\nx,3\n", "has no step and loss"),
        ("config.json", "{", "is not valid JSON"),
        ("nll/bits_per_dim.json", "[]", "is not what it should be"),
        ("nll/bits_per_dim.json", "{}", "holds no evaluation"),
        ("nll/bits_per_dim.json", '{"bits/dim": "x", "standard error": 1}', "holds no evaluation"),
        ("nll/bits_per_dim.csv", "t,mse\n1,x\n", "holds no evaluation"),
        ("nll/bits_per_dim_images.csv", "image,bits\n0,1\n", "holds no evaluation"),
    ],
)
def test_what_cannot_be_read_is_said(name, text, said, tmp_path):
    folder = make_run(tmp_path / "one")
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=said):
        comparison.read_run(folder)


@pytest.mark.slow
def test_the_script(tmp_path, scripts):
    for name, scale in (("a", 1.0), ("b", 0.5)):
        make_run(tmp_path / name, scale=scale)
    folders = (tmp_path / "a", tmp_path / "b")
    out, _ = scripts.run("compare_runs.py", *folders, out=tmp_path / "c.xlsx")
    assert re.search(r"The same images, .* in a:\n *run +less +evaluation +difference", out)
    assert re.search(r"\n *b +a +nll +-?[0-9.]+ +[0-9.]+\n", out)
    for folder, kind in itertools.product(folders, ("nll", "ddpm")):
        shutil.rmtree(folder / kind)
    out, _ = scripts.run("compare_runs.py", *folders, out=tmp_path / "c.xlsx")
    said = re.findall(r"Replacing .*[\\/](.*)\n", out)
    assert said == ["c.xlsx", "c.png"]  # there is nothing for a new c_samples.png
    assert "No run has bits/dim in its folder" in out
    assert comparison.WARNING in out
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"c.xlsx", "c.png", "c_samples.png"}
    _, err = scripts.run("compare_runs.py", *folders, out=tmp_path / "c.png", status=2)
    assert "--out must be a .xlsx file" in err
    _, err = scripts.run("compare_runs.py", tmp_path / "a", tmp_path, status=2)
    assert "is no run: it has no progress.csv" in err
    _, err = scripts.run("compare_runs.py", tmp_path / "a", tmp_path / "a", status=2)
    assert "different folder names" in err
    assert len(err.splitlines()) == 1
