"""Bad input over all scripts: each gives one line on stderr that says what is wrong, and status 2.

Words in braces stand for what the fixture ``world`` has made.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
from filelock import FileLock
from in_process import SCRIPTS, in_process
from made_files import Harmful, png_claiming
from PIL import Image

from improved_diffusion.commands import runs

TRAIN, SAMPLE, NLL = "image_train.py", "image_sample.py", "image_nll.py"
SR_TRAIN, SR_SAMPLE, EXPORT = "super_res_train.py", "super_res_sample.py", "export_results.py"
BENCHMARK, DENOISE, JUDGE = "benchmark.py", "image_denoise.py", "image_eval.py"
PLOT, INPAINT, INTERPOLATE = "plot_schedules.py", "image_inpaint.py", "image_interpolate.py"
DIFFUSERS, COMPARE = "export_diffusers.py", "compare_runs.py"
POLYNOMIAL = {"noise_schedule": "polynomial"}
CLASSES = {"class_cond": True}
GUIDED = {"guidance": 2, "guide_model": "{run}"}
DENSITY = {"schedule_sampler": "lognormal"}
BARE = {"model_path": "{bare}"}
RESUME = {"resume_checkpoint": "{model}"}


BAD_INPUT = [
    # what the parser refuses
    (TRAIN, {"colour": "red"}, "unrecognized arguments: --colour"),
    (TRAIN, {"lr": "fast"}, "argument --lr: invalid float value"),
    (SAMPLE, {"num_sample": 3}, "unrecognized arguments: --num_sample"),
    (EXPORT, {"sheet": "x"}, "unrecognized arguments: --sheet"),
    (COMPARE, {}, "arguments are required: RUN"),
    # numbers of the training
    (TRAIN, {"batch_size": -1, "lr": -1}, "lr must be .*; batch_size must be"),
    (TRAIN, {"seed": -1}, "seed must be at least 0"),
    (TRAIN, {"num_workers": -1}, "num_workers must be at least 0"),
    (TRAIN, {"max_steps": -1}, "max_steps"),
    (TRAIN, {"lr_anneal_steps": -1}, "lr_anneal_steps"),
    (TRAIN, {"weight_decay": -1}, "weight_decay"),
    (TRAIN, {"keep_checkpoints": -1}, "keep_checkpoints"),
    (TRAIN, {"max_skipped": 0}, "max_skipped"),
    (TRAIN, DENSITY | {"logsnr_mean": 99}, "has no mass on the schedule, whose log-SNRs go from"),
    (TRAIN, DENSITY | {"logsnr_std": 0}, "logsnr_std must be above 0"),
    (TRAIN, {"loss_weight": "min_snr", "use_kl": True}, "which --use_kl True does not train on"),
    (TRAIN, DENSITY | {"use_kl": True}, "--use_kl True would train on no bound; take uniform or"),
    (TRAIN, {"min_snr_gamma": 0}, "min_snr_gamma must be above 0"),
    # precision
    (TRAIN, {"use_fp16": True}, "fp16 needs a GPU.*bf16"),
    (TRAIN, {"use_fp16": True, "precision": "bf16"}, "--use_fp16 True contradicts"),
    (SAMPLE, {"precision": "fp16"}, "fp16 needs a GPU"),
    (SAMPLE, {"device": "tpu"}, "unknown device 'tpu'; choose from auto, cpu, cuda, mps"),
    # the diffusion
    (TRAIN, {"poly_power": 0} | POLYNOMIAL, "poly_power must be above 0"),
    (TRAIN, {"diffusion_steps": 0}, "diffusion_steps must be at least 1"),
    (TRAIN, {"diffusion_steps": 10**9}, "diffusion_steps must be at least 1 and at most 1e\\+06"),
    (TRAIN, {"diffusion_steps": 10, "noise_schedule": "linear"}, r"beta\[\d\] of 10 is"),
    (TRAIN, {"predict_v": True, "use_kl": True}, "--predict_v True contradicts --use_kl True"),
    (TRAIN, {"predict_v": True, "predict_xstart": True}, "contradicts --predict_xstart True"),
    (TRAIN, {"timestep_respacing": "9"}, "cannot keep 9 of 4 timesteps"),
    (TRAIN, {"timestep_respacing": "ddim3"}, "exactly 3 of 4"),
    (TRAIN, {"timestep_respacing": "many"}, "timestep_respacing takes counts .* got 'many'"),
    # the model
    (TRAIN, {"image_size": 15}, "image_size must be a multiple of 2 with channel_mult 1,1, got 15"),
    (TRAIN, {"image_size": 0}, "image_size must be at least 1, got 0"),
    (TRAIN, {"patch_size": 0}, "patch_size must be at least 1, got 0"),
    (TRAIN, {"patch_size": 3}, "image_size must be a multiple of patch_size, 3, got 16"),
    (TRAIN, {"patch_size": 16}, r"image_size / patch_size must be a multiple of 2 .*, got 1"),
    (TRAIN, {"in_channels": 2}, "in_channels must be 1 .*, got 2"),
    (TRAIN, {"sample_interval": -1}, "sample_interval must be at least 0"),
    (TRAIN, {"eval_dir": "{images}"}, "--eval_dir has the images that --eval_interval judges"),
    (TRAIN, {"seed": 2**63}, r"seed must be at least 0 and below 9\.22337e\+18"),
    (TRAIN, {"num_threads": 10**11}, "num_threads must be at least 0 and at most 4096"),
    (TRAIN, {"save_gif": True}, "--save_gif makes a film of the grids of --sample_interval"),
    (TRAIN, {"num_classes": "many"}, "expected a number or auto, got 'many'"),
    (TRAIN, {"attention_resolutions": "7"}, "image size 16: 16,8, got '7'"),
    (TRAIN, {"num_heads": 5}, "num_heads must divide .*, got 5"),
    (TRAIN, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    (
        TRAIN,
        {"num_heads_upsample": 5, "attention_resolutions": "16"},
        "num_heads_upsample must divide .*, got 5",
    ),
    (TRAIN, {"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
    (TRAIN, {"channel_mult": "1,a"}, "channel_mult must be whole numbers"),
    (TRAIN, {"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
    (TRAIN, {"label_dropout": 0.1}, "--label_dropout is for a model with classes"),
    (TRAIN, {"label_dropout": 1.0} | CLASSES, "label_dropout must be at least 0 and below 1"),
    (TRAIN, {"guidance": 2} | CLASSES, "needs a model that learns without labels"),
    (TRAIN, {"num_classes": 0} | CLASSES, "num_classes must be at least 1, got 0"),
    (TRAIN, {"num_classes": 1} | CLASSES, "has 2 classes, the model 1; give --num_classes 2"),
    (SR_TRAIN, {"small_size": 0}, "small_size must be at least 1"),
    (SR_TRAIN, {"small_size": 17}, r"small_size must be at most 16 \(large_size\), got 17"),
    (SR_TRAIN, {"large_size": 15}, "large_size must be a multiple of 2 .*, got 15"),
    # the data
    (TRAIN, {"data_dir": ""}, r"no --data_dir given.*cifar10\.py.*digits\.py"),
    (NLL, {"data_dir": ""}, r"no --data_dir given.*cifar10\.py.*digits\.py"),
    (TRAIN, {"data_dir": "{missing}"}, "image folder .*missing does not exist"),
    (TRAIN, {"data_dir": "{foreign}"}, "no images .* in .*foreign"),
    (TRAIN, {"data_dir": "{truncated}"}, r"cannot read image .*truncated/cat_000\.png"),
    (TRAIN, {"data_dir": "{text}"}, r"cannot read image .*text/cat_000\.png"),
    (TRAIN, {"data_dir": "{huge}"}, r"cannot read image .*huge.*pixels"),
    # the log directory
    (TRAIN, {"log_dir": "{file}"}, "cannot write to the log directory"),
    (TRAIN, {"log_dir": "/proc/run"}, "cannot write to the log directory"),  # not for root either
    (SAMPLE, {"log_dir": "{file}"}, "cannot write to the log directory"),
    (TRAIN, {"log_dir": "{locked}"}, "another run is writing to"),
    (TRAIN, {"log_dir": "{ragged}"}, r"progress\.csv: row 1 has 3 cells"),
    (TRAIN, {"log_dir": "{run}"}, "/run already holds a run"),
    (TRAIN, {"log_dir": "{published}"}, r"has model000001.pt without a run's state"),
    (TRAIN, {"num_classes": "ten"} | CLASSES, "expected a number or auto, got 'ten'"),
    (TRAIN, {"log_dir": "{images}/run"}, "would lie among the images of"),
    # checkpoints to go on from
    (TRAIN, {"resume_checkpoint": "auto", "log_dir": ""}, "auto looks in --log_dir; give that too"),
    (TRAIN, {"resume_checkpoint": "ema_0.9_000001.pt"}, "cannot resume from the EMA"),
    (TRAIN, {"resume_checkpoint": "{missing}"}, "no checkpoint file at .*missing"),
    (TRAIN, {"resume_checkpoint": "{bomb}"}, "no checkpoint that can be loaded safely"),
    (TRAIN, {"resume_checkpoint": "{file}"}, "no whole checkpoint"),
    (TRAIN, {"resume_checkpoint": "{torn}"}, "no whole checkpoint"),
    (TRAIN, {"resume_checkpoint": "{opt}"}, r"opt000001.pt alone; give the model\*.pt beside it"),
    (TRAIN, {"resume_checkpoint": "{run}"}, "is a folder; give --log_dir .*run and"),
    (TRAIN, {"resume_checkpoint": "{bare}", "num_channels": 64}, "num_channels is 32 there"),
    (TRAIN, RESUME | {"num_channels": 64}, "--num_channels was 32 and is 64 now"),
    (TRAIN, RESUME | {"data_dir": "{fewer}"}, "had 10 images .* and has 4"),
    (TRAIN, RESUME | {"data_dir": "{fewer}", "num_classes": "auto"}, "had 10 images .* and has 4"),
    (TRAIN, {"resume_checkpoint": "{bad_state}"}, "is broken .state000001.pt: it is cut short"),
    # models to use
    (SAMPLE, {"model_path": ""}, "no --model_path given"),
    (SAMPLE, {"model_path": "{missing}"}, "cannot read .*missing"),
    (SAMPLE, {"model_path": "{empty}"}, r"empty has no ema_\*.pt: it is no run's folder"),
    (SAMPLE, {"model_path": "{published}"}, r"has no ema_\*.pt: name a model\*.pt in it"),
    (SAMPLE, {"model_path": "{young}"}, "the first checkpoint after --save_interval updates"),
    (SR_SAMPLE, {"model_path": "{run}"}, r"is of a model that makes images: use the image_\*.py"),
    (SAMPLE, {"model_path": "{sr_run}"}, r"enlarges images: use the super_res_\*.py scripts"),
    (SAMPLE, {"model_path": "{bomb}"}, "no checkpoint that can be loaded safely"),
    (NLL, {"model_path": "{file}"}, "no whole checkpoint"),
    (SAMPLE, {"model_path": "{opt}"}, "is an optimizer's file; give the model"),
    (SAMPLE, {"model_path": "{foreign_weights}"}, "does not fit the model: .* entries differ"),
    (SAMPLE, BARE | {"num_channels": 64}, "num_channels is 32 there and 64 here"),
    (SAMPLE, {"num_channels": 64}, "--num_channels is 64, trained with 32"),
    (SR_SAMPLE, {"model_path": "{bare}"}, "is no super-resolution model; use the image_"),
    # sampling and evaluation
    (SAMPLE, {"num_samples": 0}, "num_samples must be at least 1"),
    (SAMPLE, {"batch_size": 0}, "batch_size must be at least 1"),
    (NLL, {"num_samples": 0}, "num_samples must be at least 1"),
    (NLL, {"num_timesteps": 5}, r"num_timesteps must lie in 1\.\.4, got 5"),
    (NLL, {"num_timesteps": -1}, "num_timesteps must be at least 0"),
    (SAMPLE, {"classes": "cat"}, "trained without classes"),
    (SAMPLE, {"num_classes": "auto"}, "--num_classes auto is for training"),
    (SAMPLE, {"guidance": 2}, "--guidance leads samples to their class, and .* no classes"),
    (SAMPLE, {"guidance": -1}, "guidance must be at least 0"),
    (SAMPLE, {"guidance": "inf"}, "guidance must be at least 0, got inf"),
    (SAMPLE, {"guidance_low": 1}, "are for --guidance other than 1"),
    (SAMPLE, {"guide_model": "{run}"}, "--guide_model does nothing with --guidance 1"),
    (
        SAMPLE,
        GUIDED | {"guidance_low": 2, "guidance_high": 1},
        "guidance_high above it, got 2 and 1",
    ),
    (SAMPLE, GUIDED | {"guide_model": "{missing}"}, "cannot read .*missing"),
    (SAMPLE, GUIDED | {"guide_model": "{sr_run}"}, "image_size is 64 there and 16 here"),
    (SAMPLE, GUIDED | {"guide_model": "{opt}"}, "is an optimizer's file"),
    (SAMPLE, {"model_path": "{known}", "guidance": 2}, "trained without labels, too, and this"),
    (SR_SAMPLE, {"guidance": 2}, "--guidance leads samples to their class"),
    (SAMPLE, {"sampler": "euler"}, "unknown sampler 'euler'; choose from ddpm, ddim, dpmpp"),
    (SAMPLE, {"sampler": "dpmpp", "use_ddim": True}, "--use_ddim True contradicts"),
    (SAMPLE, {"sampler": "ddpm", "eta": 0.5}, "--eta is for --sampler ddim and dpmpp"),
    (SAMPLE, {"sampler": "dpmpp", "eta": 1.5}, "--eta must be a number from 0 to 1, got '1.5'"),
    (SAMPLE, {"sampler": "ddim", "eta": "some"}, "--eta must be a number from 0 to 1, got 'some'"),
    (SAMPLE, {"sampling_steps": 2, "timestep_respacing": "2"}, "give one of them"),
    (SAMPLE, {"sampling_steps": -1}, "sampling_steps must be at least 0"),
    (SAMPLE, {"sampling_steps": 1}, "the least noisy timestep"),
    (SAMPLE, {"seed": -1}, "seed must be at least 0"),
    (SAMPLE, {"sampling_steps": 99}, "cannot keep 99 of 4 timesteps"),
    (SAMPLE, {"sampler": "dpmpp", "sampling_steps": 99}, "cannot keep 99 of 4 timesteps"),
    (SR_SAMPLE, {"base_samples": ""}, "no --base_samples given"),
    (SR_SAMPLE, {"base_samples": "{missing}"}, "missing does not exist"),
    (SR_SAMPLE, {"base_samples": "{file}"}, r"is a file of no known kind"),
    (SR_SAMPLE, {"base_samples": "{npz_bomb}"}, "has no array of images"),
    (SR_SAMPLE, {"base_samples": "{npz_small}"}, "are 4 pixels wide or high, fewer than 8"),
    (SR_SAMPLE, {"base_samples": "{npz_none}"}, "npz_none"),
    (SR_SAMPLE, CLASSES, "small.npz have no classes, and the model needs them"),
    # the judge; test_image_eval.py has the rest
    (JUDGE, {"samples": "{npz_bomb}"}, "has no array of images"),
    (JUDGE, {"reference": "{missing}"}, "missing does not exist"),
    # denoising
    (DENOISE, {"input": ""}, "no --input given"),
    (DENOISE, {"input": "{missing}"}, "cannot read .*missing"),
    (DENOISE, {"input": "{truncated}/cat_000.png"}, r"cannot read image .*cat_000\.png: "),
    (DENOISE, {"input": "{long}"}, "has 65 x 16 pixels; this model can take sides of 3 to 64"),
    (DENOISE, {"input": "{twice}"}, r"a\.bmp and a\.png in .*twice would both become a"),
    (DENOISE, {"clean": "{missing}"}, "cannot read .*missing"),
    (DENOISE, {"input": "{half}", "clean": "{wide}"}, "differ in size"),
    (DENOISE, {"sigma": 1e9}, r"sigma 1e\+09 .* more than .* give [\d.e+]+ at most"),
    (DENOISE, {"input": "{empty}"}, "no images .* in .*empty"),
    (DENOISE, {"input": "{huge}/cat_000.png"}, "cannot read image .*huge.*pixels"),
    (DENOISE, {"sigma": "nan"}, "sigma must be at least 0, got nan"),
    # inpainting
    (INPAINT, {"input": ""}, "no --input given; name a picture of 16 x 16 pixels"),
    (INPAINT, {"mask": ""}, "no --mask given; name a picture of 16 x 16 pixels"),
    (INPAINT, {"input": "{missing}"}, "cannot read .*missing"),
    (INPAINT, {"input": "{wide}"}, "wide.png has 20 x 16 pixels; .* take sides of 16, so cut or"),
    (INPAINT, {"mask": "{wide}"}, "wide.png has 20 x 16 pixels; .* take sides of 16, so cut or"),
    (INPAINT, {"mask": "{text}/cat_000.png"}, "cannot read image .*text/cat_000.png"),
    (INPAINT, {"jump_length": 0}, "jump_length must be at least 1"),
    (INPAINT, {"jump_length": 4}, "jumps of 4 timesteps do not fit into a walk of 2"),
    (INPAINT, {"resamplings": 0}, "resamplings must be at least 1"),
    (INPAINT, {"label": "cat"}, "trained without classes; leave --label out"),
    (INPAINT, {"model_path": "{known}"}, "needs one --label; choose from cat, dog"),
    (INPAINT, {"model_path": "{known}", "guidance": 2}, "leads to a class: give its --label"),
    (
        INPAINT,
        {"model_path": "{known}", "guidance": 2, "label": "cat", "resamplings": 1},
        "trained without labels",
    ),
    (INPAINT, {"guidance": 2}, "--guidance leads samples to their class, and .* no classes"),
    # interpolation
    (INTERPOLATE, {"first": ""}, "no --first given; name a picture, or give a number"),
    (INTERPOLATE, {"first": "{missing}"}, "cannot read .*missing"),
    (INTERPOLATE, {"first": "-1"}, "cannot read image -1: "),
    (INTERPOLATE, {"last": "{wide}"}, "wide.png has 20 x 16 pixels; .* take sides of 16, so cut"),
    (INTERPOLATE, {"first": "{half}"}, "--first and --last are both .*half.png"),
    (INTERPOLATE, {"first": "{half_again}"}, "half_again.png and .*half.png show the same"),
    (INTERPOLATE, {"first": "1", "last": "01"}, "--first and --last are both 1"),
    (INTERPOLATE, {"num_samples": 1}, "num_samples must be at least 2"),
    (INTERPOLATE, {"timestep_respacing": "1"}, "the least noisy timestep"),
    (INTERPOLATE, {"sampling_steps": 99}, "cannot keep 99 of 4 timesteps"),
    (INTERPOLATE, {"sampling_steps": 2, "timestep_respacing": "2"}, "give one of them"),
    (INTERPOLATE, {"model_path": "{known}"}, "needs one --label"),
    (INTERPOLATE, {"guidance": 2}, "--guidance leads samples to their class, and .* no classes"),
    # the export to diffusers
    (DIFFUSERS, {"model_path": ""}, "no --model_path given"),
    (DIFFUSERS, {"model_path": "{missing}"}, "cannot read .*missing"),
    (DIFFUSERS, {"model_path": "{sr_bare}"}, "it is a super-resolution model"),
    (DIFFUSERS, {"timestep_respacing": "2"}, "timesteps are respaced.*num_inference_steps"),
    (DIFFUSERS, {"out_dir": ""}, "no --out_dir given; name a new folder"),
    (DIFFUSERS, {"out_dir": "{run}"}, "--out_dir .*run is not empty; give a new folder"),
    (DIFFUSERS, {"out_dir": "{file}"}, "--out_dir .*file is a file; give a new folder"),
    (DIFFUSERS, {"out_dir": "{missing}/x"}, "the folder of --out_dir .* does not exist"),
    # the benchmark
    (BENCHMARK, {"rounds": 0}, "rounds must be at least 1"),
    (BENCHMARK, {"num_heads": 3}, "num_heads must divide"),
    (BENCHMARK, {"compile": "perhaps"}, "expected True or False"),
    # the picture of the schedules
    (PLOT, {"diffusion_steps": 0}, "diffusion_steps must be at least 1"),
    (PLOT, {"poly_powers": "1,high"}, "poly_powers must be numbers such as"),
    (PLOT, {"out": "{missing}/a.png"}, "--out must be a .png file in a folder .*missing"),
    (PLOT, {"out": "a.jpg"}, "--out must be a .png file"),
    # the workbook
    (EXPORT, {}, "give either --log_dir"),
    (EXPORT, {"csv": "{csv}", "log_dir": "{run}"}, "give either --log_dir"),
    (EXPORT, {"log_dir": "{empty}"}, r"empty/progress\.csv"),
    (EXPORT, {"csv": "{csv}", "out": "{missing}/x.xlsx"}, "--out must be a .xlsx file in a folder"),
    (EXPORT, {"csv": "{csv}", "out": "{csv}"}, "--out must be a .xlsx file"),
]


@pytest.fixture(scope="module")
def base(tiny, tiny_sr):
    """Flags of each script that work, but for those of a case."""
    training = {
        "num_threads": 1,
        "batch_size": 2,
        "max_steps": 1,
        "log_dir": "{out}",
        "data_dir": "{images}",
    }
    using = {"num_threads": 1, "num_samples": 1, "batch_size": 1, "log_dir": "{out}"}
    return {
        TRAIN: tiny | training,
        SR_TRAIN: tiny_sr | training,
        SAMPLE: tiny | using | {"model_path": "{run}"},
        NLL: tiny | using | {"model_path": "{run}", "data_dir": "{images}"},
        SR_SAMPLE: using | tiny_sr | {"model_path": "{sr_bare}", "base_samples": "{small}"},
        DENOISE: {"model_path": "{run}", "input": "{images}", "log_dir": "{out}"},
        JUDGE: {"samples": "{images}", "reference": "{images}", "log_dir": "{out}"},
        INPAINT: using
        | {"model_path": "{run}", "input": "{half}", "mask": "{half}", "sampling_steps": 2},
        INTERPOLATE: using
        | {"model_path": "{run}", "num_samples": 2, "first": "1", "last": "{half}"},
        EXPORT: {},
        BENCHMARK: tiny,
        COMPARE: {"out": "{out}.xlsx"},
        DIFFUSERS: tiny | {"num_threads": 1, "model_path": "{run}", "out_dir": "{out}"},
        PLOT: {"out": "{out}.png"},
    }


@pytest.fixture(scope="module")
def world(base, images, make_images, tiny, tmp_path_factory):
    """Good and bad files by name."""
    root = tmp_path_factory.mktemp("world")
    found = {"images": images, "missing": root / "missing"}
    for name in ("run", "known", "locked", "sr_run", "ragged"):
        found[name] = root / name
    for script, name in ((TRAIN, "run"), (TRAIN, "known"), (SR_TRAIN, "sr_run")):
        flags = base[script] | {"log_dir": found[name], "data_dir": images}
        flags |= CLASSES if name == "known" else {}
        assert in_process(script, flags) == 0

    found |= make_folders(root, make_images)
    found |= make_checkpoints(root, found["run"], found["sr_run"])
    found |= make_arrays(root)
    found |= make_pictures(root)
    found["locked"].mkdir()
    found["ragged"].mkdir()
    (found["ragged"] / "progress.csv").write_text("step,loss\n1,2,3\n2,3\n")
    found["csv"] = found["run"] / "progress.csv"
    with FileLock(found["locked"] / runs.LOCK_NAME):
        yield {name: str(path) for name, path in found.items()}
    assert not (root / "exploded").exists()


def make_folders(root, make_images):
    for name in ("empty", "foreign"):
        (root / name).mkdir()
    (root / "foreign" / "notes.txt").write_text("no image")
    (root / "file").write_text("no folder")
    make_images(root / "fewer", count=4)
    contents = {"text": b"no image", "huge": png_claiming(10**5, 10**5)}
    for name in ("truncated", *contents):
        first = make_images(root / name, count=2, names=("cat",)) / "cat_000.png"
        first.write_bytes(contents.get(name, first.read_bytes()[:500]))
    names = ("empty", "foreign", "file", "fewer", "truncated", *contents)
    return {name: root / name for name in names}


def make_checkpoints(root, run, sr_run):
    found = {"model": run / "model000001.pt"}
    found |= {kind: run / f"{kind}000001.pt" for kind in ("opt", "state")}
    found |= {name: root / f"{name}.pt" for name in ("bomb", "torn", "foreign_weights")}
    th.save({"weight": Harmful(os.mkdir, str(root / "exploded"))}, found["bomb"])
    found["torn"].write_bytes(found["model"].read_bytes()[:-1000])
    th.save({"weight": th.ones(3)}, found["foreign_weights"])
    for name, source in (("bare", run), ("sr_bare", sr_run), ("bad_state", run)):
        (root / name).mkdir()
        found[name] = root / name / "model000001.pt"
        shutil.copy(source / "model000001.pt", found[name])
    for name, only in (("published", "model000001.pt"), ("young", "model000000.pt")):
        found[name] = root / name
        found[name].mkdir()
        shutil.copy(run / only, found[name])
    (root / "bad_state" / "state000001.pt").write_bytes(found["state"].read_bytes()[:-1000])
    return found


def make_arrays(root):
    arrays = {
        "small": np.zeros((2, 8, 8, 3), dtype=np.uint8),
        "npz_small": np.zeros((2, 4, 4, 3), dtype=np.uint8),
        "npz_none": np.zeros((0, 8, 8, 3), dtype=np.uint8),
        "npz_bomb": np.array([Harmful(os.mkdir, str(root / "exploded"))], dtype=object),
    }
    found = {name: root / f"{name}.npz" for name in arrays}
    for name, array in arrays.items():
        np.savez(found[name], array)
    return found


def make_pictures(root):
    """Pictures of the model's size, or not, in black and white."""
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:8] = 255
    pictures = {"half": half, "half_again": half, "wide": np.zeros((16, 20), dtype=np.uint8)}
    pictures["long"] = np.zeros((16, 65), dtype=np.uint8)
    (root / "twice").mkdir()
    for name in ("a.bmp", "a.png"):
        Image.fromarray(half).save(root / "twice" / name)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(root / f"{name}.png")
    return {name: root / f"{name}.png" for name in pictures} | {"twice": root / "twice"}


@pytest.fixture
def fill_in(base, world, tmp_path):
    """All flags of a case."""

    def fill(script, flags):
        names = world | {"out": str(tmp_path / "out")}
        flags = base[script] | flags
        return {name: str(value).format(**names) for name, value in flags.items()}

    return fill


def case_name(case):
    script, flags, _ = getattr(case, "values", case)
    return f"{script}-{' '.join(f'{key} {value}' for key, value in flags.items())}"


@pytest.mark.parametrize(("script", "flags", "said"), BAD_INPUT, ids=map(case_name, BAD_INPUT))
def test_bad_input(script, flags, said, fill_in, world, capsys, monkeypatch):
    monkeypatch.setattr(runs, "home", lambda: Path(world["missing"]))
    status = in_process(script, fill_in(script, flags))
    err = capsys.readouterr().err
    assert status == 2, err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"{script}: error: ")
    assert re.search(said, err), err


# The same as processes: nothing else reaches stderr, such as a library's warning.
AS_PROCESSES = [
    (TRAIN, {"data_dir": "{text}"}),
    (SR_SAMPLE, {"base_samples": "{npz_bomb}"}),
]


@pytest.mark.parametrize(("script", "flags"), AS_PROCESSES)
def test_bad_input_to_a_process(script, flags, fill_in, scripts):
    _, err = scripts.run_process(script, **fill_in(script, flags), status=2)
    assert len(err.splitlines()) == 1
    assert err.startswith(f"{script}: error: ")


def test_an_unknown_log_format(fill_in, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "stdout,excel")
    assert in_process(TRAIN, fill_in(TRAIN, {})) == 2
    assert "unknown log format 'excel'" in capsys.readouterr().err


def test_every_script_is_in_the_table():
    programs = {p.name for p in SCRIPTS.glob("*.py") if "__main__" in p.read_text("utf-8")}
    assert {script for script, _, _ in BAD_INPUT} == programs
