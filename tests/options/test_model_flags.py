"""Flags of the model: what works, and that following the advice about what does not, does."""

import re

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from improved_diffusion import script_util
from improved_diffusion.errors import InputError
from improved_diffusion.options.model_flags import check_model_flags, sr_check_model_flags

FLAGS = {"num_channels": 32, "num_res_blocks": 1, "num_heads": 4, "num_heads_upsample": -1}
FLAGS |= {"attention_resolutions": "", "dropout": 0.0, "channel_mult": "", "in_channels": 3}


@pytest.mark.parametrize(
    ("size", "mult"), [(32, (1, 2, 2, 2)), (64, (1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))]
)
def test_channel_multiples_go_with_the_size(size, mult):
    assert check_model_flags(size, **FLAGS).channel_mult == mult
    assert check_model_flags(size, **FLAGS | {"channel_mult": "1,3"}).channel_mult == (1, 3)


def test_attention_resolutions_are_heights():
    flags = FLAGS | {"attention_resolutions": "16,8"}
    assert check_model_flags(32, **flags).attention_factors == (2, 4)
    assert check_model_flags(64, **flags).attention_factors == (4, 8)
    assert check_model_flags(32, **FLAGS).attention_factors == ()


def advice(check, *sizes, **flags):
    """What a message advises, by flag."""
    with pytest.raises(InputError) as raised:
        check(*sizes, **FLAGS | flags)
    return dict(re.findall(r"nearest that can be: --(\w+) (\S+)\)", str(raised.value)))


@pytest.mark.parametrize(
    ("size", "flags", "advised"),
    [
        # 16 and 8 occur at 32: only the size is in the way
        (30, {"channel_mult": "1,1,1", "attention_resolutions": "16,8"}, {"image_size": "32"}),
        (1, {"channel_mult": "1,1,1"}, {"image_size": "4"}),
        (
            48,
            {"attention_resolutions": "16,8"},
            {"channel_mult": "1,2,2,2", "attention_resolutions": "12,6"},
        ),
        (32, {"channel_mult": "1,x"}, {"channel_mult": "1,2,2,2"}),
        (32, {"channel_mult": "1,0"}, {"channel_mult": "1,2,2,2"}),
        (32, {"attention_resolutions": "7"}, {"attention_resolutions": "8"}),
        (32, {"attention_resolutions": "a"}, {"attention_resolutions": "4"}),
        (32, {"attention_resolutions": "16;9"}, {"attention_resolutions": "16,8"}),
        # 5 divides 40, but not what 40 has to become
        (32, {"num_channels": 40, "num_heads": 5}, {"num_channels": "32", "num_heads": "4"}),
        (32, {"num_channels": 0}, {"num_channels": "32"}),
        (32, {"channel_mult": "2,2", "num_channels": 16}, {"num_channels": "32"}),
        (32, {"num_heads": 0}, {"num_heads": "1"}),
        (32, {"num_heads_upsample": 3}, {"num_heads_upsample": "2"}),
        (32, {"num_heads": -1}, {"num_heads": "1"}),
        (32, {"dropout": 1.0}, {"dropout": "0.9"}),
        (32, {"dropout": float("nan")}, {"dropout": "0.0"}),
        (32, {"num_classes": 0}, {"num_classes": "1"}),
        (32, {"in_channels": 5}, {"in_channels": "4"}),
    ],
)
def test_advice(size, flags, advised):
    assert advice(check_model_flags, size, **flags) == advised


@pytest.mark.parametrize(("small_size", "advised"), [(0, "1"), (65, "64")])
def test_small_images_are_no_larger_than_large_ones(small_size, advised):
    found = advice(sr_check_model_flags, 63, small_size, channel_mult="1,1", num_res_blocks=0)
    assert found == {"large_size": "64", "small_size": advised, "num_res_blocks": "1"}


ODD_FLAGS = {
    "num_channels": st.sampled_from([32, 32, 20, 0, -5, 50]),
    "num_res_blocks": st.sampled_from([1, 1, 0]),
    "num_heads": st.integers(-1, 9),
    "num_heads_upsample": st.integers(-2, 9),
    "attention_resolutions": st.sampled_from(["16,8", "16,8", "", "7", "a,3", "64 ,1", ",", "²"]),
    "dropout": st.sampled_from([0.0, 0.0, -1.0, 1.5]),
    "channel_mult": st.sampled_from(["", "", "1", "1,1", "2,2", "1,1,1", "2,1,1,1", "1,", "0"]),
    "in_channels": st.integers(0, 6),
}


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(-1, 70), small_size=st.integers(-1, 70), flags=st.fixed_dictionaries(ODD_FLAGS)
)
def test_who_follows_the_advice_gets_a_model(size, small_size, flags):
    flags |= {"use_checkpoint": False, "use_scale_shift_norm": True, "class_cond": False}
    flags["learn_sigma"] = False
    sized = {"image_size": size} if size % 2 else {"large_size": size, "small_size": small_size}
    create = script_util.create_model if size % 2 else script_util.sr_create_model
    flags |= sized
    with th.device("meta"):  # shapes alone: nothing is allocated or computed
        try:
            create(**flags)
        except InputError as error:
            said = re.findall(r"nearest that can be: --(\w+) (\S+)\)", str(error))
            assert len(said) == str(error).count("; ") + 1
            flags |= {name: type(flags[name])(value) for name, value in said}
            create(**flags)


@pytest.mark.parametrize(("size", "mult"), [(6, "2,1"), (7, "1"), (8, "3,1,2")])
def test_a_model_of_any_size_computes(size, mult):
    flags = script_util.model_and_diffusion_defaults() | FLAGS
    flags |= {"image_size": size, "channel_mult": mult}
    model, _ = script_util.create_model_and_diffusion(**flags)
    x = th.zeros(1, 3, size, size)
    assert model(x, th.zeros(1)).shape == x.shape
