"""Flags of the model: what they make, and what is said of those that cannot work."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from improved_diffusion import script_util
from improved_diffusion.errors import InputError
from improved_diffusion.options.model import ImageModelOptions, SuperResOptions, suggested_mult

FLAGS = {"num_channels": 32, "num_res_blocks": 1, "attention_resolutions": ""}


@pytest.mark.parametrize(
    ("size", "mult"), [(32, (1, 2, 2, 2)), (64, (1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))]
)
def test_channel_multiples_go_with_the_size(size, mult):
    assert ImageModelOptions(image_size=size, **FLAGS).levels.channel_mult == mult
    options = ImageModelOptions(image_size=size, channel_mult="1,3", **FLAGS)
    assert options.levels.channel_mult == (1, 3)


def test_attention_resolutions_are_heights():
    flags = FLAGS | {"attention_resolutions": "16,8"}
    assert ImageModelOptions(image_size=32, **flags).levels.attention_factors == (2, 4)
    assert ImageModelOptions(image_size=64, **flags).levels.attention_factors == (4, 8)
    assert ImageModelOptions(image_size=32, **FLAGS).levels.attention_factors == ()


def test_patches_lower_the_first_level():
    flags = FLAGS | {"image_size": 64, "patch_size": 2, "attention_resolutions": "32,8"}
    levels = ImageModelOptions(**flags).levels
    assert levels.channel_mult == (1, 2, 2, 2)  # those of height 32
    assert levels.attention_factors == (1, 4)
    with pytest.raises(InputError, match=r"and patch_size 2: 32,16,8,4, got '64'"):
        ImageModelOptions(**flags | {"attention_resolutions": "64"})
    with pytest.raises(InputError, match=r"image_size / patch_size 32,64,256 only; for 24 give"):
        ImageModelOptions(**flags | {"image_size": 48})
    with pytest.raises(InputError, match=r"large_size / patch_size 64,256 only; for 32 give"):
        SuperResOptions(**FLAGS, large_size=64, small_size=8, patch_size=2)


def test_super_resolution_has_no_default_for_32_pixels():
    with pytest.raises(InputError, match=r"large_size 64,256 only; for 32 give .* 1,2,2,2"):
        SuperResOptions(large_size=32, small_size=8, **FLAGS)


@pytest.mark.parametrize("size", [4, 12, 28, 48, 63, 96, 128])
def test_the_suggested_multiples_work(size):
    mult = ",".join(map(str, suggested_mult(size)))
    with pytest.raises(InputError, match=f"such as {mult}$"):
        ImageModelOptions(image_size=size, **FLAGS)
    options = ImageModelOptions(image_size=size, channel_mult=mult, **FLAGS)
    with th.device("meta"):  # shapes alone: nothing is allocated or computed
        assert script_util.build_model(options).channel_mult == suggested_mult(size)


def test_heads_must_divide_the_channels_where_there_is_attention_alone():
    flags = FLAGS | {"image_size": 32, "channel_mult": "1,3", "num_heads": 3}
    flags |= {"attention_resolutions": "16", "num_channels": 32}
    with th.device("meta"):
        script_util.build_model(ImageModelOptions(**flags))
    for name in ("num_heads", "num_heads_upsample"):
        with pytest.raises(InputError, match=rf"{name} must divide .* 32 x \(1,3\), got 3"):
            ImageModelOptions(**flags | {"attention_resolutions": "32,16", name: 3})
    with pytest.raises(InputError, match=r"num_heads must divide .* 32 x \(1,3\), got 3"):
        ImageModelOptions(**flags | {"attention_resolutions": "32", "channel_mult": "3,1"})


def test_all_problems_are_named_at_once():
    with pytest.raises(InputError) as raised:
        ImageModelOptions(num_channels=40, attention_resolutions="7", noise_schedule="linear")
    said = str(raised.value)
    assert "num_channels must be a multiple of 32" in said
    assert "attention_resolutions must be among the heights" in said
    assert "\n" not in said


def test_the_number_of_classes_may_come_later():
    options = ImageModelOptions(num_classes="auto", class_cond=True)
    with pytest.raises(InputError, match="num_classes is auto"):
        script_util.build_model(options)
    assert options.but(num_classes=7).class_count == 7
    assert ImageModelOptions(num_classes="auto").class_count is None


ODD_FLAGS = {
    "num_channels": st.sampled_from([32, 32, 20, 0, -5, 50]),
    "num_res_blocks": st.sampled_from([1, 1, 0]),
    "num_heads": st.integers(-1, 9),
    "num_heads_upsample": st.integers(-2, 9),
    "attention_resolutions": st.sampled_from(["16,8", "16,8", "", "7", "a,3", "64 ,1", ",", "²"]),
    "dropout": st.sampled_from([0.0, 0.0, -1.0, 1.5]),
    "channel_mult": st.sampled_from(["", "", "1", "1,1", "2,2", "1,1,1", "2,1,1,1", "1,", "0"]),
    "in_channels": st.integers(0, 6),
    "patch_size": st.sampled_from([1, 1, 2, 3, 0]),
}


@settings(max_examples=100)
@given(
    size=st.integers(-1, 70), small_size=st.integers(-1, 70), flags=st.fixed_dictionaries(ODD_FLAGS)
)
def test_what_is_not_refused_makes_a_model(size, small_size, flags):
    sizes = {"image_size": size} if size % 2 else {"large_size": size, "small_size": small_size}
    kind = ImageModelOptions if size % 2 else SuperResOptions
    try:
        options = kind(**sizes, **flags)
    except InputError as error:
        assert "\n" not in str(error)
        return
    with th.device("meta"):
        script_util.build_model(options)


@pytest.mark.parametrize(("size", "mult"), [(6, "2,1"), (7, "1"), (8, "3,1,2")])
def test_a_model_of_any_size_computes(size, mult):
    options = ImageModelOptions(image_size=size, channel_mult=mult, **FLAGS)
    x = th.zeros(1, 3, size, size)
    assert script_util.build_model(options)(x, th.zeros(1)).shape == x.shape
