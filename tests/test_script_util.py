import argparse
import json
from pathlib import Path

import pytest

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion import script_util
from improved_diffusion.cli import Parser
from improved_diffusion.errors import InputError
from improved_diffusion.flag_help import HELP

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
    assert [name for name in defaults if name not in HELP] == []


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
    ("flags", "kind"),
    [
        ({}, gd.LossType.MSE),
        ({"rescale_learned_sigmas": True}, gd.LossType.RESCALED_MSE),
        ({"use_kl": True, "rescale_learned_sigmas": True}, gd.LossType.RESCALED_KL),
    ],
)
def test_loss_types(flags, kind):
    assert script_util.create_gaussian_diffusion(**flags).loss_type is kind


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({}, gd.ModelVarType.FIXED_LARGE),
        ({"sigma_small": True}, gd.ModelVarType.FIXED_SMALL),
        ({"learn_sigma": True, "sigma_small": True}, gd.ModelVarType.LEARNED_RANGE),
    ],
)
def test_variance_types(flags, kind):
    assert script_util.create_gaussian_diffusion(**flags).model_var_type is kind


def test_mean_types_and_respacing():
    assert script_util.create_gaussian_diffusion().model_mean_type is gd.ModelMeanType.EPSILON
    diffusion = script_util.create_gaussian_diffusion(predict_xstart=True, timestep_respacing="7")
    assert diffusion.model_mean_type is gd.ModelMeanType.START_X
    assert diffusion.num_timesteps == 7
    assert script_util.create_gaussian_diffusion().num_timesteps == 1000


def test_the_power_reaches_the_schedule():
    settings = {"steps": 100, "noise_schedule": "polynomial"}
    diffusion = script_util.create_gaussian_diffusion(**settings, poly_power=3.0)
    wanted = gd.get_named_beta_schedule("polynomial", 100, 3.0)
    assert diffusion.betas == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("size", "mult"), [(32, (1, 2, 2, 2)), (64, (1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))]
)
def test_channel_multiples_go_with_the_size(size, mult):
    assert script_util.parse_channel_mult("", size, (32, 64, 256)) == mult
    assert script_util.parse_channel_mult("1,3", size, (32, 64, 256)) == (1, 3)


def test_attention_resolutions_are_heights():
    assert script_util.attention_factors("16,8", 32, (1, 2, 2, 2)) == (2, 4)
    assert script_util.attention_factors("", 32, (1, 2)) == ()


MODEL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"image_size": 48}, "48 has no default channel_mult"),
        ({"channel_mult": "1,x"}, "channel_mult must be whole numbers"),
        ({"channel_mult": "1,0"}, "channel_mult must be whole numbers"),
        ({"attention_resolutions": "7"}, "'7' never occurs .* these do: 32,16,8,4"),
        ({"attention_resolutions": "a"}, "'a' never occurs"),
        ({"image_size": 30, "channel_mult": "1,1,1", "attention_resolutions": ""}, "nearest.*: 32"),
        ({"num_channels": 48}, "divisible by 32, .*nearest that is: 64"),
        ({"num_channels": 0}, "num_channels 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
        ({"num_heads": 5}, "num_heads 5 does not divide"),
        ({"num_heads": 0}, "num_heads 0 does not divide"),
        ({"num_heads_upsample": 3}, "num_heads_upsample 3 does not divide"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"class_cond": True, "num_classes": 0}, "num_classes must be at least 1"),
        ({"num_res_blocks": 0, "num_heads": 5}, "num_res_blocks.*; num_heads"),
        ({"noise_schedule": "sigmoid"}, "unknown noise_schedule"),
        ({"diffusion_steps": 10}, "choose another noise_schedule or number of diffusion_steps"),
        ({"timestep_respacing": "2000"}, "cannot keep 2000 of 1000"),
    ],
)
def test_flags_that_cannot_work(flags, said):
    with pytest.raises(InputError, match=said) as raised:
        script_util.create_model_and_diffusion(
            **script_util.model_and_diffusion_defaults() | MODEL | flags
        )
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("small_size", [0, 65])
def test_small_images_are_smaller_than_large_ones(small_size):
    flags = {"large_size": 64, "num_channels": 32, "small_size": small_size}
    with pytest.raises(InputError, match=r"small_size must lie in 1\.\.64"):
        script_util.sr_create_model_and_diffusion(
            **script_util.sr_model_and_diffusion_defaults() | flags
        )
