import pytest
import torch as th

from improved_diffusion import script_util
from improved_diffusion.errors import InputError
from improved_diffusion.models.architecture import check_fit, infer_flags

FLAGS = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_classes": 5,
}


def build(**changes):
    flags = script_util.model_and_diffusion_defaults() | FLAGS | changes
    return script_util.create_model_and_diffusion(**flags)[0]


def build_sr(**changes):
    flags = script_util.sr_model_and_diffusion_defaults() | FLAGS
    del flags["image_size"]
    flags |= {"large_size": 16, "small_size": 8}
    return script_util.sr_create_model_and_diffusion(**flags | changes)[0]


def test_flags_are_read_from_weights():
    weights = build().state_dict()
    assert infer_flags(weights, 16)["attention_resolutions"] == "8"
    assert infer_flags(weights) == {
        "num_channels": 32,
        "in_channels": 3,
        "patch_size": 1,
        "super_resolution": False,
        "learn_sigma": False,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "image_size/2",
        "use_scale_shift_norm": True,
        "class_cond": False,
        "num_classes": None,
    }


@pytest.mark.parametrize(
    ("changes", "flag", "value"),
    [
        ({"num_channels": 64}, "num_channels", 64),
        ({"num_res_blocks": 3}, "num_res_blocks", 3),
        ({"channel_mult": "1,2,3"}, "channel_mult", "1,2,3"),
        ({"attention_resolutions": ""}, "attention_resolutions", ""),
        ({"attention_resolutions": "16,8"}, "attention_resolutions", "16,8"),
        ({"learn_sigma": True}, "learn_sigma", True),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm", False),
        ({"patch_size": 2}, "patch_size", 2),
        ({"class_cond": True}, "class_cond", True),
        ({"class_cond": True}, "num_classes", 5),
    ],
)
def test_each_flag_is_read_and_a_misfit_names_it(changes, flag, value):
    trained, model = build(**changes), build()
    theirs, ours = (infer_flags(m.state_dict(), 16)[flag] for m in (trained, model))
    assert theirs == value != ours
    with pytest.raises(InputError) as raised:
        check_fit(model, trained.state_dict(), "model.pt")
    said = str(raised.value)
    assert said.startswith("model.pt does not fit the model: ")
    assert f"{flag} is {value if value != '' else repr('')} there and {ours} here" in said
    assert "\n" not in said


def test_the_advised_attention_fits_whatever_the_image_size():
    trained = build(attention_resolutions="16,8").state_dict()
    with pytest.raises(InputError, match="attention_resolutions is 32,16 there and 16 here"):
        check_fit(build(image_size=32, attention_resolutions="16"), trained, "model.pt")
    check_fit(build(image_size=32, attention_resolutions="32,16"), trained, "model.pt")


@pytest.mark.parametrize("make", [build, build_sr])
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_are_read_where_one_knows_what_to_look_for(channels, patch_size, make):
    flags = {"in_channels": channels, "patch_size": patch_size, "learn_sigma": True}
    if patch_size == 4:
        flags |= {"channel_mult": "1", "attention_resolutions": "4"}
    weights = make(**flags).state_dict()
    expected = flags | {"super_resolution": make is build_sr}
    assert infer_flags(weights, 16, patch_size).items() >= expected.items()
    if channels == 3:  # grey and four channels may be taken for each other
        assert infer_flags(weights, 16) == infer_flags(weights, 16, patch_size)


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_super_resolution_is_told_from_images(channels, learn_sigma):
    flags = {"in_channels": channels, "learn_sigma": learn_sigma}
    image_model, sr_model = build(**flags), build_sr(**flags)
    for model, super_resolution in ((image_model, False), (sr_model, True)):
        expected = flags | {"super_resolution": super_resolution}
        assert infer_flags(model.state_dict()).items() >= expected.items()
    with pytest.raises(InputError, match="it is a super-resolution model; use the super_res"):
        check_fit(image_model, sr_model.state_dict(), "model.pt")
    with pytest.raises(InputError, match="it is no super-resolution model; use the image_"):
        check_fit(sr_model, image_model.state_dict(), "model.pt")


def test_foreign_weights_name_the_first_entry():
    with pytest.raises(InputError, match=r"entries differ, first .* there"):
        check_fit(build(), {"weight": th.ones(1)}, "model.pt")
    assert infer_flags({"weight": th.ones(1)}) == {}


@pytest.mark.parametrize(
    "name",
    [
        "out.2.bias",
        "middle_block.1.qkv.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.0.0.weight",
    ],
)
def test_a_missing_entry_is_named(name):
    weights = build().state_dict()
    del weights[name]
    with pytest.raises(
        InputError, match=rf"1 entries differ, first {name}, which is missing there"
    ):
        check_fit(build(), weights, "model.pt")
