import argparse
import json
from pathlib import Path

import pytest

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion import script_util
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser

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
    diffusion = script_util.create_gaussian_diffusion(predict_v=True, timestep_respacing="7")
    assert diffusion.model_mean_type is gd.ModelMeanType.V
    assert script_util.create_gaussian_diffusion().num_timesteps == 1000


def test_the_power_reaches_the_schedule():
    settings = {"steps": 100, "noise_schedule": "polynomial"}
    diffusion = script_util.create_gaussian_diffusion(**settings, poly_power=3.0)
    wanted = gd.get_named_beta_schedule("polynomial", 100, 3.0)
    assert diffusion.betas == pytest.approx(wanted)


MODEL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_channels": 48}, "multiple of 32, .* got 48"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
        ({"num_channels": 48, "timestep_respacing": "0"}, "num_channels .*; timestep_respacing"),
        ({"noise_schedule": "sigmoid"}, "unknown noise_schedule"),
        ({"diffusion_steps": 10}, "choose another noise_schedule or number of diffusion_steps"),
        ({"predict_v": True, "use_kl": True}, "--predict_v True contradicts --use_kl True"),
        ({"predict_v": True, "predict_xstart": True}, "contradicts --predict_xstart True"),
        ({"timestep_respacing": "2000"}, "cannot keep 2000 of 1000"),
    ],
)
def test_flags_that_cannot_work(flags, said):
    flags = script_util.model_and_diffusion_defaults() | MODEL | flags
    with pytest.raises(InputError, match=said) as raised:
        script_util.create_model_and_diffusion(**flags)
    assert "\n" not in str(raised.value)


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
