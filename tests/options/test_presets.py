"""Presets: flags of the training by a name, which the command line overrides."""

import pytest

from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import as_words, parse_options
from improved_diffusion.options.presets import PRESETS
from improved_diffusion.options.training import ImageTraining, SuperResTraining
from improved_diffusion.options.using import ImageSampling
from improved_diffusion.script_util import build_model
from improved_diffusion.system import cpu


def parse(*words):
    return parse_options(ImageTraining, "Train.", words)


@pytest.fixture(autouse=True, params=[True, False], ids=["bf16", "no-bf16"])
def native_bfloat16(request, monkeypatch):
    """Every preset works on a processor with native bfloat16, and on one without."""
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_its_flags(name, native_bfloat16):
    options, flags = parse("--preset", name), PRESETS[name].flags
    assert options.preset == name
    found = {flag: value for flag, value in options.as_dict().items() if flag in flags}
    wanted = dict(flags)
    if flags.get("precision") == "auto":
        wanted["precision"] = "bf16" if native_bfloat16 else "fp32"
    assert found == wanted
    assert {flag: type(value) for flag, value in found.items()} == {
        flag: type(value) for flag, value in wanted.items()
    }
    others = {f: v for f, v in ImageTraining.defaults().items() if f not in (*flags, "preset")}
    assert options.as_dict().items() >= others.items()
    build_model(options.but(num_classes=10))


@pytest.mark.parametrize("order", [0, 1])
def test_the_command_line_overrides_a_preset(order):
    words = [("--preset", "cifar10_hour"), ("--lr", "0.5", "--class_cond", "False")][
        :: 1 - 2 * order
    ]
    options = parse(*words[0], *words[1], "--label_dropout", "0", "--guidance=1")
    assert (options.lr, options.class_cond, options.guidance) == (0.5, False, 1.0)
    assert options.guidance_high == 0  # the preset's is for its own scale
    assert options.predict_v


def test_a_preset_that_does_not_exist():
    with pytest.raises(
        InputError, match=r"^unknown preset 'best'; choose from reference_cifar10, "
    ):
        parse("--preset", "best")


def test_what_a_preset_contradicts_is_said():
    with pytest.raises(InputError, match="--time_budget says itself"):
        parse("--preset", "cifar10_hour", "--lr_anneal_steps", "9")


def test_presets_are_for_images_alone():
    with pytest.raises(InputError, match="unrecognized arguments: --preset"):
        parse_options(SuperResTraining, "Train.", ["--preset", "cifar10_hour"])


def test_the_published_models_flags():
    """As they stand in the README of improved-diffusion."""
    published = (
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
        "--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128"
    )
    assert parse("--preset", "reference_cifar10").but(preset="") == parse(*published.split())


def test_flags_as_words():
    words = as_words({"lr": 8e-4, "ema_rate": "0.9,0.99", "class_cond": True})
    assert words == ["--lr", "0.0008", "--ema_rate", "0.9,0.99", "--class_cond", "True"]


@pytest.mark.parametrize("name", PRESETS)
def test_how_a_presets_model_is_sampled(name):
    preset = PRESETS[name]
    model = {"class_cond": True, "label_dropout": 0.1} if "guidance" in preset.flags else {}
    words = as_words(model | {**preset.sampling, "guidance": preset.flags.get("guidance", 1.0)})
    sampler = parse_options(ImageSampling, "Sample.", words).chosen_sampler
    assert sampler.name == preset.sampling.get("sampler", "ddpm")
