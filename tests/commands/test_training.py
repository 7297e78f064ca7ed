"""Flags of a training and of sampling reach what they are for."""

import math
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from in_process import SCRIPTS
from torch import nn
from toy_training import toy_loop

from improved_diffusion import train_util
from improved_diffusion.commands import sampling, training
from improved_diffusion.commands.trained import Trained
from improved_diffusion.diffusion.guidance import Guidance
from improved_diffusion.evaluation.bits_per_dim import BpdTable
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.options.using import BoundOptions, ImageSampling, SuperResSampling
from improved_diffusion.sampling import samples
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import (
    build_diffusion,
    build_model,
    create_gaussian_diffusion,
)
from improved_diffusion.training.muon import Muon


class Reached(Exception):
    """The call that was waited for, with what it was given by name."""


@pytest.fixture
def reaching(monkeypatch):
    """Have a function of a module end the test with what it is given, by name and by place."""

    def patch(module, name):
        def reached(*args, **given):
            raise Reached(given, args)

        monkeypatch.setattr(module, name, reached)

    return patch


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("random_flip", True),
        ("labels", "name"),
        ("on_bad_image", "skip"),
        ("num_workers", 3),
        ("seed", 7),
        ("batch_size", 5),
        ("in_channels", 1),
    ],
)
def test_flags_of_the_data_reach_the_loader(flag, value, reaching):
    reaching(training, "load_data")
    with pytest.raises(Reached) as reached:
        training.open_training_images(ImageTraining(data_dir="somewhere", **{flag: value}))
    assert reached.value.args[0][flag] == value


def test_the_density_of_noise_levels_reaches_what_draws_them(reaching, images, tiny, tmp_path):
    reaching(training, "create_named_schedule_sampler")
    density = {"schedule_sampler": "laplace", "logsnr_mean": 1.0, "logsnr_std": 0.5}
    options = ImageTraining(data_dir=str(images), log_dir=str(tmp_path), **tiny, **density)
    options, data = training.open_training_images(options)
    parts = build_model(options), build_diffusion(options), data, data
    with pytest.raises(Reached) as reached:
        training.train("image_train", options, *parts)
    name, _, *given = reached.value.args[1]
    assert [name, *given] == [*density.values()]


@pytest.mark.parametrize(("name", "kind"), [("adamw", th.optim.AdamW), ("muon", Muon)])
def test_the_optimizer_is_the_one_that_is_asked_for(name, kind):
    assert type(toy_loop(optimizer=name).opt) is kind


def test_the_share_of_labels_to_drop_reaches_the_model(tiny):
    options = ImageTraining(**tiny, class_cond=True, label_dropout=0.3)
    assert build_model(options).label_dropout == 0.3


@pytest.mark.parametrize("flag", [True, False])
def test_whether_to_recompute_reaches_the_blocks(flag, tiny):
    model = build_model(ImageTraining(**tiny, use_checkpoint=flag))
    assert model.middle_block[0].use_checkpoint is flag


def test_a_run_recommends_the_guidance_of_its_preset():
    options = parse_options(ImageTraining, None, ["--preset", "cifar10_hour"])
    told = training._how_to_sample(options)["sampling"]
    assert (told["sampler"], told["guidance"], told["guidance_high"]) == ("dpmpp", 4.0, 3.0)


def test_samples_on_the_way_are_of_all_classes_and_guided_as_the_flags_say(tiny, images):
    flags = {"class_cond": True, "num_classes": 9, "label_dropout": 0.1, "guidance": 2.0, "seed": 7}
    options = ImageTraining(**tiny, **flags, guidance_high=3.0, data_dir=str(images))
    options, data = training.open_training_images(options)
    preview = training.make_preview(options, data, build_diffusion(options), 5, {})
    assert preview.guidance == Guidance(2.0, 0.0, 3.0)
    assert preview.seed == 7
    assert preview.model_kwargs["y"].tolist() == [0, 1, 0, 1, 0]


def test_random_classes_are_all_those_that_were_trained(tiny):
    script = SimpleNamespace(**runpy.run_path(str(SCRIPTS / "image_sample.py")))
    options = ImageSampling(**tiny, model_path="any.pt", class_cond=True, num_classes=5)
    condition = script.class_condition(options, Trained({"classes": ["a", "b"]}, True, 5))
    y = condition(range(40), ImageNoise(0, range(40)))["y"]
    assert set(y.tolist()) == {0, 1}


def test_a_model_that_enlarges_sees_the_small_images(tiny_sr, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "small.npz", pixels)
    script = SimpleNamespace(**runpy.run_path(str(SCRIPTS / "super_res_sample.py")))
    flags = {"model_path": "any.pt", "base_samples": str(tmp_path / "small.npz")}
    options = SuperResSampling(**tiny_sr, **flags)
    images = script.load_base_samples(options, Trained({}, True, 0))
    given = script.small_condition(*images)([4, 0], ImageNoise(0, [4, 0]))["low_res"]
    np.testing.assert_allclose(given.permute(0, 2, 3, 1), pixels[[1, 0]] / 127.5 - 1, atol=1e-6)
    trainer = SimpleNamespace(**runpy.run_path(str(SCRIPTS / "super_res_train.py")))
    large = th.rand(2, 3, 16, 16)
    th.testing.assert_close(trainer.WithLowRes(None, 8).shrink(large), F.avg_pool2d(large, 2))


@pytest.mark.parametrize(("name", "dtype"), [("fp32", th.float32), ("bf16", th.bfloat16)])
def test_a_model_in_use_computes_in_the_precision_that_is_asked_for(name, dtype):
    with sampling.evaluating(nn.Linear(4, 4), name) as call:
        assert call(th.ones(1, 4)).dtype == dtype


@pytest.mark.parametrize("clip", [True, False])
def test_whether_to_clip_reaches_the_order_of_samples(clip, reaching, tiny):
    reaching(sampling, "Order")
    options = ImageSampling(**tiny, model_path="any.pt", clip_denoised=clip)
    with pytest.raises(Reached) as reached:
        sampling.sample("image_sample", options, None, lambda *_: {})
    assert reached.value.args[0]["clip_denoised"] is clip


@pytest.mark.parametrize("clip", [True, False])
def test_whether_to_clip_reaches_the_bound(clip, monkeypatch, tiny):
    script = SimpleNamespace(**runpy.run_path(str(SCRIPTS / "image_nll.py")))
    given = {}

    def reached(*_, **arguments):
        given.update(arguments)
        raise Reached

    monkeypatch.setitem(script.evaluate.__globals__, "estimate_bpd", reached)
    options = BoundOptions(**tiny, model_path="any.pt", data_dir="any", clip_denoised=clip)
    diffusion = build_diffusion(options)
    images = iter([(th.zeros(1, 3, 16, 16), {})])
    with pytest.raises(Reached):
        script.evaluate(options, nn.Identity(), diffusion, images, BpdTable(diffusion))
    assert given["clip_denoised"] is clip


@pytest.mark.parametrize("clip", [True, False])
def test_whether_to_clip_reaches_the_sampler(clip, reaching):
    reaching(samples, "draw")
    order = samples.Order(1, (3, 8, 8), 1, 0, "ddpm", clip_denoised=clip)
    diffusion = create_gaussian_diffusion(steps=4, noise_schedule="cosine")
    with pytest.raises(Reached) as reached:
        samples.make_samples(samples.Samples(), order, nn.Identity(), diffusion, lambda *_: {})
    assert reached.value.args[0]["clip_denoised"] is clip


def test_the_interval_of_guidance_is_that_of_the_flags():
    flags = {"class_cond": True, "label_dropout": 0.1, "guidance": 2.0, "guidance_low": 0.5}
    assert ImageTraining(**flags).chosen_guidance == Guidance(2.0, 0.5, math.inf)
    assert ImageTraining(**flags, guidance_high=3.0).chosen_guidance == Guidance(2.0, 0.5, 3.0)


def test_a_model_is_compiled_where_that_is_asked_for(monkeypatch):
    for module in (sampling, train_util):
        monkeypatch.setattr(module, "Compiled", lambda model, _: [model])
    model = nn.Linear(2, 2)
    for compile, wanted in ((False, model), (True, [model])):
        with sampling.evaluating(model, "fp32", compile) as call:
            assert call == wanted
        diffusion = create_gaussian_diffusion(steps=4, noise_schedule="cosine")
        loop = train_util.TrainLoop(
            model=model,
            diffusion=diffusion,
            data=iter(()),
            batch_size=1,
            microbatch=1,
            lr=0.0,
            ema_rate="0.9",
            log_interval=1,
            save_interval=1,
            resume_checkpoint="",
            compile=compile,
        )
        assert loop.working == wanted
