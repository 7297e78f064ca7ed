"""What the UNet does with blocks, hooks, precisions and bad input; its numbers: test_parity."""

import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.unet import (
    AttentionBlock,
    Downsample,
    QKVAttention,
    ResBlock,
    SuperResModel,
    TimestepBlock,
    UNetModel,
    Upsample,
)


def small(use_checkpoint=False, dropout=0.0, **kwargs):
    """A UNet of two levels with attention, none of whose weights are zero."""
    th.manual_seed(0)
    kwargs = {"channel_mult": (1, 2), "num_heads": 2, "use_scale_shift_norm": True} | kwargs
    model = UNetModel(2, 32, 2, 1, (2,), dropout=dropout, use_checkpoint=use_checkpoint, **kwargs)
    for name, p in model.named_parameters():
        is_norm = name.endswith("weight") and p.ndim == 1
        th.nn.init.normal_(p, mean=float(is_norm), std=0.05)
    return model


def autocast():
    return th.autocast("cpu", dtype=th.bfloat16)


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


class Shift(TimestepBlock):
    """A block of a user's own, which adds a number made of the embedding."""

    def __init__(self):
        super().__init__()
        self.gain = th.nn.Parameter(th.tensor(0.01))

    def forward(self, x, emb):
        assert emb.shape == (len(x), 128)
        return x + self.gain * emb.mean(dim=1).view(-1, 1, 1, 1).to(x.dtype)


@pytest.fixture(params=[None, th.bfloat16], ids=["fp32", "bf16"])
def precision(request):
    with th.autocast("cpu", dtype=request.param, enabled=request.param is not None):
        yield request.param


def call(model):
    with th.no_grad():
        return model(th.linspace(-1, 1, 256).view(2, 2, 8, 8), th.tensor([5.0, 800.0]))


def test_blocks_of_a_users_own(precision):
    model = small()
    before = call(model)
    for sequence in (model.input_blocks[1], model.middle_block, model.output_blocks[0]):
        sequence.append(Shift())
    assert not th.equal(call(model), before)


def test_hooks_see_the_embedding(precision):
    model, seen = small(), []
    for module in model.modules():
        if isinstance(module, TimestepBlock):
            module.register_forward_hook(lambda _, given, out: seen.append(given))
    before = call(model)
    assert {len(given) for given in seen} == {2}
    assert len({id(emb) for _, emb in seen}) == 1
    assert seen[0][1].shape == (2, 128)
    assert th.equal(call(model), before)


@pytest.mark.slow
def test_the_model_is_compiled_in_one_piece():
    model = small()
    with autocast():
        compiled = th.compile(model, backend="eager", fullgraph=True)
        th.testing.assert_close(call(compiled), call(model))


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
        (lambda: small(dims=3, patch_size=2), "patch_size 2 is for images of 2 dimensions, not 3"),
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


# --- labels that are left out


def with_classes(**settings):
    """A model of five classes whose labels make a difference."""
    return small(num_classes=5, **settings)


def outputs(model, y, seed=0):
    th.manual_seed(1)
    x, t = th.randn(len(y), 2, 8, 8), th.rand(len(y)) * 1000
    th.manual_seed(seed)
    return model(x, t, y)


@pytest.mark.parametrize("precision", [None, th.bfloat16])
@th.no_grad()
def test_no_label_adds_nothing(precision):
    model = with_classes().eval()
    y = th.tensor([3, NO_LABEL, 0])
    with th.autocast("cpu", dtype=precision, enabled=precision is not None):
        mixed, known = outputs(model, y), outputs(model, y.clamp(min=0))
        model.label_emb.weight.zero_()
        nothing = outputs(model, y)
    assert th.equal(mixed[[0, 2]], known[[0, 2]])
    assert th.equal(mixed[1], nothing[1])
    assert not th.equal(mixed[1], known[1])


def test_no_label_teaches_no_class():
    model = with_classes()
    outputs(model, th.tensor([3, NO_LABEL])).square().mean().backward()
    rows = model.label_emb.weight.grad.abs().sum(dim=1)
    assert (rows != 0).tolist() == [False, False, False, True, False]


def test_a_label_below_all_others_is_still_refused():
    with pytest.raises(IndexError):
        outputs(with_classes(), th.tensor([-2]))


@th.no_grad()
def test_labels_are_dropped_while_training_only():
    model = with_classes(label_dropout=0.25)
    y = th.full((400,), 3)
    th.manual_seed(0)
    for training in (True, False):
        model.train(training)
        added = model._embed_labels(y)
        dropped = (added == 0).all(dim=1).float().mean().item()
        assert dropped == (pytest.approx(0.25, abs=0.07) if training else 0)
    assert list(model.state_dict()) == list(with_classes().state_dict())


def test_without_the_probability_no_random_number_is_drawn():
    th.manual_seed(5)
    wanted = th.rand(3)
    model = with_classes().train()
    th.manual_seed(5)
    model._embed_labels(th.tensor([1, 2]))
    assert th.equal(th.rand(3), wanted)


# --- patches of pixels as channels


def into_patches(x, p):
    """[N, C, pH, pW] as [N, C p^2, H, W], pixel by pixel of a patch."""
    parts = [x[:, :, i::p, j::p] for i in range(p) for j in range(p)]
    return th.stack(parts, dim=2).flatten(1, 2)


@pytest.mark.parametrize("precision", [None, th.bfloat16])
@th.no_grad()
def test_patches_are_channels_of_a_smaller_image(precision):
    patched = small(patch_size=2)
    settings = {"channel_mult": (1, 2), "num_heads": 2, "use_scale_shift_norm": True}
    whole = UNetModel(8, 32, 8, 1, (2,), **settings)
    whole.load_state_dict(patched.state_dict())
    x, t = th.randn(2, 2, 16, 8), th.tensor([5.0, 800.0])
    with th.autocast("cpu", dtype=precision, enabled=precision is not None):
        made, wanted = patched(x, t), whole(into_patches(x, 2), t)
    assert made.shape == x.shape
    assert th.equal(into_patches(made, 2), wanted)


def test_feature_vectors_of_patches():
    features = small(patch_size=4).get_feature_vectors(th.zeros(1, 2, 16, 8), th.zeros(1))
    assert [tuple(h.shape[2:]) for h in features["down"]] == [(4, 2), (4, 2), (2, 1), (2, 1)]


def test_the_sides_are_multiples_of_patches_and_levels():
    model = small(patch_size=4)
    assert (model.side_multiple, small().side_multiple) == (8, 2)
    model(th.zeros(1, 2, 8, 16), th.zeros(1))
    said = r"halves its input of patches of 4 pixels 1 times: size \(8, 12\).*divisible by 8"
    with pytest.raises(InputError, match=said):
        model(th.zeros(1, 2, 8, 12), th.zeros(1))


def test_super_resolution_in_patches():
    model = SuperResModel(3, 32, 6, 1, (), channel_mult=(1,), patch_size=2)
    x = th.zeros(1, 3, 8, 8)
    assert model(x, th.zeros(1), low_res=x[..., :2, :2]).shape == (1, 6, 8, 8)
