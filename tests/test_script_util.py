import argparse
import json
from pathlib import Path

import pytest

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion import script_util
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser, parse_options
from improved_diffusion.options.training import ImageTraining, SuperResTraining
from improved_diffusion.options.using import BoundOptions, ImageSampling, SuperResSampling

FLAGS = json.loads((Path(__file__).parent / "reference" / "flag_defaults.json").read_text())


@pytest.mark.parametrize("kind", ["model", "super_resolution"])
def test_the_references_flags_have_the_references_defaults(kind):
    make = {
        "model": script_util.model_and_diffusion_defaults,
        "super_resolution": script_util.sr_model_and_diffusion_defaults,
    }
    defaults = make[kind]()
    for name, value in FLAGS[kind].items():
        assert defaults[name] == value
        assert type(defaults[name]) is type(value)


TRAINING = {
    "data_dir": "",
    "schedule_sampler": "uniform",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "lr_anneal_steps": 0,
    "batch_size": 1,
    "microbatch": -1,
    "ema_rate": "0.9999",
    "log_interval": 10,
    "save_interval": 10000,
    "resume_checkpoint": "",
    "use_fp16": False,
    "fp16_scale_growth": 1e-3,
}
USE = {"clip_denoised": True, "model_path": ""}
SAMPLING = USE | {"num_samples": 10000, "batch_size": 16, "use_ddim": False}
BOUND = USE | {"num_samples": 1000, "batch_size": 1, "data_dir": ""}


@pytest.mark.parametrize(
    ("options", "own", "kind"),
    [
        (ImageTraining, TRAINING, "model"),
        (ImageSampling, SAMPLING, "model"),
        (BoundOptions, BOUND, "model"),
        (SuperResTraining, TRAINING, "super_resolution"),
        (SuperResSampling, SAMPLING | {"base_samples": ""}, "super_resolution"),
    ],
)
def test_the_references_scripts_have_their_flags_and_explain_them(options, own, kind, capsys):
    assert options.defaults().items() >= (own | FLAGS[kind]).items()
    with pytest.raises(SystemExit):
        parse_options(options, "About.", ["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in options.defaults())


def test_flags_become_arguments_and_back():
    parser = Parser()
    defaults = {"number": 3, "rate": 0.5, "yes": True, "word": "a", "nothing": None}
    script_util.add_dict_to_argparser(parser, defaults)
    words = ["--number", "4", "--yes", "False", "--nothing", "x"]
    args = parser.parse_args(words)
    wanted = {"number": 4, "rate": 0.5, "yes": False, "word": "a", "nothing": "x"}
    assert script_util.args_to_dict(args, defaults.keys()) == wanted


def test_it_also_serves_the_standard_parser():
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, script_util.model_and_diffusion_defaults())
    assert vars(parser.parse_args([])) == script_util.model_and_diffusion_defaults()


@pytest.mark.parametrize(
    ("flags", "name", "kind"),
    [
        ({}, "loss_type", gd.LossType.MSE),
        ({"rescale_learned_sigmas": True}, "loss_type", gd.LossType.RESCALED_MSE),
        (
            {"use_kl": True, "rescale_learned_sigmas": True},
            "loss_type",
            gd.LossType.RESCALED_KL,
        ),
        ({}, "model_var_type", gd.ModelVarType.FIXED_LARGE),
        ({"sigma_small": True}, "model_var_type", gd.ModelVarType.FIXED_SMALL),
        (
            {"learn_sigma": True, "sigma_small": True},
            "model_var_type",
            gd.ModelVarType.LEARNED_RANGE,
        ),
        ({}, "model_mean_type", gd.ModelMeanType.EPSILON),
        ({"predict_xstart": True}, "model_mean_type", gd.ModelMeanType.START_X),
        ({"predict_v": True}, "model_mean_type", gd.ModelMeanType.V),
        ({"timestep_respacing": "7"}, "num_timesteps", 7),
    ],
)
def test_flags_of_the_diffusion(flags, name, kind):
    assert getattr(script_util.create_gaussian_diffusion(**flags), name) == kind


def test_the_power_reaches_the_schedule():
    settings = {"steps": 100, "noise_schedule": "polynomial"}
    diffusion = script_util.create_gaussian_diffusion(**settings, poly_power=3.0)
    wanted = gd.get_named_beta_schedule("polynomial", 100, 3.0)
    assert diffusion.betas == pytest.approx(wanted)


MODEL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1}


@pytest.mark.parametrize("other", ["use_kl", "predict_xstart"])
def test_v_contradicts_other_predictions(other):
    flags = script_util.model_and_diffusion_defaults() | MODEL | {"predict_v": True, other: True}
    with pytest.raises(InputError, match=f"--predict_v True contradicts --{other} True"):
        script_util.create_model_and_diffusion(**flags)


def test_flags_that_came_since_go_by_name():
    flags = script_util.model_and_diffusion_defaults() | MODEL | {"poly_power": 3.0}
    model, _ = script_util.create_model_and_diffusion(**flags | {"in_channels": 1})
    assert model.in_channels == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        script_util.create_model_and_diffusion(**flags, colour="red")


def test_the_references_arguments_go_by_position_too():
    model = script_util.create_model(32, 32, 1, True, False, False, "16", 4, -1, True, 0.1)
    assert (model.out_channels, model.dropout, model.attention_resolutions) == (6, 0.1, (2,))
    enlarging = script_util.sr_create_model(64, 16, 32, 1, False, True, False, "8", 2, -1, True, 0)
    assert (enlarging.in_channels, enlarging.num_classes) == (6, script_util.NUM_CLASSES)


@pytest.mark.parametrize(("given", "kept"), [([3, 2], 5), ((4,), 4), (None, 20), ("5", 5)])
def test_a_respacing_comes_as_in_the_published_code(given, kept):
    settings = {"steps": 20, "noise_schedule": "cosine"}
    diffusion = script_util.create_gaussian_diffusion(**settings, timestep_respacing=given)
    assert diffusion.num_timesteps == kept
