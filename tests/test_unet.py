"""The UNet against recorded outputs and layouts, and what it does with precisions and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.unet import (
    AttentionBlock,
    Downsample,
    QKVAttention,
    ResBlock,
    SuperResModel,
    UNetModel,
    Upsample,
    project_embedding,
)

REFERENCE = Path(__file__).parent / "reference"
LAYOUTS = json.loads((REFERENCE / "checkpoint_layouts.json").read_text())
DEFAULTS = json.loads((REFERENCE / "flag_defaults.json").read_text())
CHANNEL_MULT = {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}
PUBLISHED = ["plain", "learn_sigma", "class_cond", "no_scale_shift_one_head", "super_resolution"]


def build(super_resolution=False, **flags):
    flags = DEFAULTS["super_resolution" if super_resolution else "model"] | flags
    size = flags["large_size" if super_resolution else "image_size"]
    return (SuperResModel if super_resolution else UNetModel)(
        in_channels=3,
        model_channels=flags["num_channels"],
        out_channels=6 if flags["learn_sigma"] else 3,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=[size // int(n) for n in flags["attention_resolutions"].split(",")],
        dropout=flags["dropout"],
        channel_mult=CHANNEL_MULT[size],
        num_classes=1000 if flags["class_cond"] else None,
        num_heads=flags["num_heads"],
        num_heads_upsample=flags["num_heads_upsample"],
        use_scale_shift_norm=flags["use_scale_shift_norm"],
    )


def fill(model):
    """Give every weight the value that the recorded outputs were made with."""
    state = model.state_dict()
    for i, name in enumerate(sorted(state)):
        value = np.random.RandomState(i).standard_normal(tuple(state[name].shape)) * 0.05
        is_norm = name.endswith("weight") and state[name].ndim == 1
        state[name] = th.from_numpy((value + is_norm).astype(np.float32))
    model.load_state_dict(state)
    return model


def small(use_checkpoint=False, dropout=0.0, **kwargs):
    """A UNet of two levels with attention, none of whose weights are zero."""
    th.manual_seed(0)
    kwargs = {"channel_mult": (1, 2), "num_heads": 2, "use_scale_shift_norm": True} | kwargs
    return fill(
        UNetModel(2, 32, 2, 1, (2,), dropout=dropout, use_checkpoint=use_checkpoint, **kwargs)
    )


def uniform(n, size, seed):
    x = np.random.RandomState(seed).uniform(-1, 1, (n, 3, size, size))
    return th.from_numpy(x.astype(np.float32))


def autocast():
    return th.autocast("cpu", dtype=th.bfloat16)


@pytest.fixture(scope="module")
def recorded():
    with np.load(REFERENCE / "unet.npz") as file:
        return dict(file)


def published(recorded, name):
    """A model, its input and the output that was recorded for it."""
    flags = json.loads(str(recorded[f"{name}.config"]))
    x = [uniform(2, flags.get("large_size", flags.get("image_size")), 100)]
    x.append(th.tensor([3.0, 977.0]))
    kwargs = {"y": th.tensor([7, 421])} if flags.get("class_cond") else {}
    if flags["super_resolution"]:
        kwargs["low_res"] = uniform(2, flags["small_size"], 101)
    return fill(build(**flags)).eval(), x, kwargs, th.from_numpy(recorded[f"{name}.out"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_are_the_recorded_ones(recorded, name):
    model, x, kwargs, want = published(recorded, name)
    with th.no_grad():
        got = model(*x, **kwargs)
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("name", PUBLISHED)
def test_bfloat16_stays_near_and_returns_float32(recorded, name):
    model, x, kwargs, want = published(recorded, name)
    with th.no_grad(), autocast():
        got = model(*x, **kwargs)
    assert got.dtype == th.float32
    # Separate operations under autocast (norms in float32, einsum) are off by 0.020 to 0.028.
    assert (got - want).square().mean().sqrt() <= 0.026 * want.square().mean().sqrt()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_that_of_the_published_checkpoints(name):
    want = LAYOUTS[name]
    with th.device("meta"):
        model = build(super_resolution=want["super_resolution"], **want["flags"])
    got = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert got == want["state_dict"]
    assert [key for key, _ in model.named_parameters()] == want["parameter_order"]


def gradients(model, seed=0, size=(8, 8), precision=None):
    th.manual_seed(seed)
    x, t = th.randn(2, 2, *size), th.rand(2) * 1000
    model.zero_grad()
    with th.autocast("cpu", dtype=precision, enabled=precision is not None):
        loss = model(x, t).square().mean()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("precision", [None, th.bfloat16])
def test_checkpointing_and_repeating_keep_every_bit(precision):
    model, frugal = small(dropout=0.3), small(dropout=0.3, use_checkpoint=True)
    want = gradients(model, precision=precision)
    assert all(g.any() for g in want)
    assert all(map(th.equal, gradients(model, precision=precision), want))
    assert all(map(th.equal, gradients(frugal, precision=precision), want))


def test_bfloat16_gradients_point_where_those_of_float32_do():
    model = small()
    exact, rough = (
        th.cat([g.flatten() for g in gradients(model, precision=precision)])
        for precision in (None, th.bfloat16)
    )
    assert rough.dtype == th.float32
    assert th.cosine_similarity(exact, rough, dim=0) > 0.999


@pytest.mark.parametrize(("dims", "size"), [(1, (8,)), (2, (4, 8)), (3, (3, 4, 4))])
@pytest.mark.parametrize("flags", [{"conv_resample": False, "use_scale_shift_norm": False}, {}])
def test_every_number_of_dimensions(dims, size, flags):
    model = small(dims=dims, **flags)
    for precision in (None, th.bfloat16):
        assert all(g.isfinite().all() for g in gradients(model, size=size, precision=precision))


def test_attention_is_softmax_of_scaled_products():
    th.manual_seed(0)
    q, k, v = parts = th.randn(3, 2, 8, 5)
    weight = th.softmax(th.einsum("bct,bcs->bts", q, k) / 8**0.5, dim=-1)
    got = QKVAttention()(th.cat(list(parts), dim=1))
    th.testing.assert_close(got, th.einsum("bts,bcs->bct", weight, v))


@pytest.mark.parametrize("scale_shift", [False, True])
def test_blocks_are_given_what_they_make_of_the_embedding_themselves(scale_shift):
    th.manual_seed(0)
    widths = [32, 64, 32]
    blocks = [ResBlock(32, 16, 0, w, use_scale_shift_norm=scale_shift) for w in widths]
    for block in blocks:
        for p in (*block.out_layers[0].parameters(), *block.emb_layers.parameters()):
            th.nn.init.normal_(p)
    emb = th.randn(5, 16)
    given = project_embedding(emb, blocks)
    for block in blocks:
        made = block.emb_layers(emb)
        if scale_shift:
            norm = block.out_layers[0]
            scale, shift = made.chunk(2, dim=1)
            made = (1 + scale) * norm.weight, (1 + scale) * norm.bias + shift
        th.testing.assert_close(given[block], made)


def test_new_blocks_are_the_identity():
    x, emb = th.randn(2, 32, 4, 4), th.randn(2, 16)
    assert th.equal(ResBlock(32, 16, 0.1)(x, emb), x)
    assert th.equal(AttentionBlock(32, num_heads=4)(x), x)


def test_resampling_without_convolutions():
    x = th.arange(16.0).view(1, 1, 4, 4)
    assert th.equal(
        Upsample(1, False)(x)[0, 0, :2, :4], x[0, 0, :1, :2].repeat(2, 1).repeat_interleave(2, 1)
    )
    assert th.equal(Downsample(1, False)(x)[0, 0], th.tensor([[2.5, 4.5], [10.5, 12.5]]))


def test_feature_vectors_are_what_the_blocks_compute():
    model, x, t = small().eval(), th.randn(1, 2, 8, 8), th.tensor([5.0])
    features = model.get_feature_vectors(x, t)
    assert len(features["down"]) == len(model.input_blocks)
    assert len(features["up"]) == len(model.output_blocks)
    assert features["middle"].shape == (1, 64, 4, 4)
    assert th.equal(model.out(features["up"][-1]), model(x, t))


def test_fp16_and_back():
    model, x, t = small().eval(), th.randn(1, 2, 8, 8), th.tensor([5.0])
    with th.no_grad():
        want = model(x, t)
        model.convert_to_fp16()
        assert model.inner_dtype == th.float16
        assert model.time_embed[0].weight.dtype == model.out[2].weight.dtype == th.float32
        half = model(x, t)
    assert half.dtype == th.float32
    assert not th.equal(half, want)
    th.testing.assert_close(half, want, rtol=0.05, atol=0.05)
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {th.float32}


def test_float64_throughout():
    assert small().double()(th.randn(1, 2, 8, 8).double(), th.tensor([5.0])).dtype == th.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetModel(2, 48, 2, 1, ()), "48 channels.*multiple of 32"),
        (lambda: small(num_heads=3), "64 channels.*3 attention heads"),
        (lambda: small(num_heads=2, num_heads_upsample=5), "5 attention heads"),
        (lambda: AttentionBlock(32, num_heads=0), "0 attention heads"),
        (lambda: Upsample(4, True)(th.zeros(1, 3, 2, 2)), "4 channels.*has 3"),
        (lambda: Downsample(4, True)(th.zeros(1, 3, 2, 2)), "4 channels.*has 3"),
    ],
)
def test_channels_that_do_not_fit(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("classes", "size", "y", "message"),
    [
        (None, (8, 6), None, None),
        (None, (8, 7), None, "divisible by 2"),
        (3, (8, 8), None, "needs labels"),
        (3, (8, 8), th.tensor([1]), "one label for each of 2"),
        (None, (8, 8), th.tensor([0, 1]), "not class-conditional"),
    ],
)
def test_input_that_does_not_fit(classes, size, y, message):
    model, x, t = small(num_classes=classes), th.zeros(2, 2, *size), th.zeros(2)
    if message is None:
        model(x, t, y)
        return
    with pytest.raises(InputError, match=message):
        model(x, t, y)


def test_super_resolution_needs_the_small_image():
    model = SuperResModel(3, 32, 3, 1, (2,), channel_mult=(1, 2))
    with pytest.raises(InputError, match="low_res"):
        model(th.zeros(1, 3, 8, 8), th.zeros(1))
    features = model.get_feature_vectors(
        th.zeros(1, 3, 8, 8), th.zeros(1), low_res=th.zeros(1, 3, 4, 4)
    )
    assert features["middle"].shape == (1, 64, 4, 4)
