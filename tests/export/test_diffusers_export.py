"""Export to diffusers: the mapping, what it refuses, and equal outputs where diffusers is there."""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch as th
from tiny_runs import save_run

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.errors import InputError
from improved_diffusion.export import diffusers as export
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.script_util import (
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from improved_diffusion.unet import UNetModel

SIZE = 16
BASE = {"image_size": SIZE, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2,2"}
BASE |= {"attention_resolutions": "8,4"}  # two levels of one width
ARCHITECTURES = {
    "scale and shift": {},
    "addition": {"use_scale_shift_norm": False},
    "no attention but in the middle": {"attention_resolutions": ""},
    "two blocks": {"num_res_blocks": 2},
    "one head in levels of three widths": {
        "num_heads": 1,
        "channel_mult": "1,2,3",
        "attention_resolutions": "16,8",
    },
    "heads on the way up that no block has": {
        "num_heads_upsample": 2,
        "attention_resolutions": "",
    },
    "classes": {"class_cond": True, "num_classes": 3},
    "classes of which some are dropped": {"class_cond": True, "num_classes": 3}
    | {"label_dropout": 0.1},
    "grey images": {"in_channels": 1},
    "learned variances": {"learn_sigma": True, "noise_schedule": "cosine"},
    "image predicted": {"predict_xstart": True, "sigma_small": True},
    "v predicted": {"predict_v": True, "noise_schedule": "cosine"},
    "scaled timesteps": {"diffusion_steps": 4000, "noise_schedule": "cosine"},
    "few timesteps": {"diffusion_steps": 30, "noise_schedule": "polynomial"},
    "timesteps as they are": {"diffusion_steps": 250, "rescale_timesteps": False},
}


@dataclass
class Exported:
    """A model, its diffusion, and the pipeline loaded from its folder."""

    model: Any
    diffusion: Any
    pipeline: Any
    difference: float


def make(**flags):
    """A model whose every layer says something, and its diffusion."""
    flags = model_and_diffusion_defaults() | BASE | flags
    model, diffusion = create_model_and_diffusion(**flags)
    generator = th.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = th.randn(p.shape, generator=generator) * 0.05 + (0.5 if p.ndim == 1 else 0)
    return model.eval().requires_grad_(False), diffusion


@pytest.mark.parametrize(
    ("flags", "kind"),
    [({}, "epsilon"), ({"predict_xstart": True}, "sample"), ({"predict_v": True}, "v_prediction")],
)
def test_the_scheduler_is_told_what_the_model_predicts(flags, kind):
    assert export.scheduler_config(make(**flags)[1])["prediction_type"] == kind


# --- what diffusers cannot express


def unet(**settings):
    """A model that no flags make."""
    shape = {"in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1}
    shape |= {"attention_resolutions": (), "channel_mult": (1, 1)}
    return UNetModel(**shape | settings)


EPSILON, FIXED_LARGE = gd.ModelMeanType.EPSILON, gd.ModelVarType.FIXED_LARGE


def diffusion_of(**kinds):
    """A diffusion that no flags make."""
    kinds = {"model_mean_type": EPSILON, "model_var_type": FIXED_LARGE} | kinds
    betas = gd.get_named_beta_schedule("cosine", 10)
    return SpacedDiffusion(range(10), betas=betas, loss_type=gd.LossType.MSE, **kinds)


def super_resolution():
    flags = {"large_size": 16, "small_size": 8, "num_channels": 32, "channel_mult": "1,1"}
    return sr_create_model_and_diffusion(**sr_model_and_diffusion_defaults() | flags)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: make(attention_resolutions="16,4"), "attention_head_dim .* 8 and 16 channels"),
        (lambda: make(num_heads_upsample=2), "heads here are 16 and 32 channels wide"),
        (
            lambda: make(timestep_respacing="10", num_heads_upsample=2),
            "attention_head_dim.*respaced.*num_inference_steps",
        ),
        (lambda: (unet(conv_resample=False), diffusion_of()), "conv_resample is False"),
        (lambda: (unet(dims=1), diffusion_of()), "images of two dimensions"),
        (lambda: make(patch_size=2), "makes no channels of patches .patch_size 2"),
        (lambda: (unet(channel_mult=(2, 2)), diffusion_of()), "channel_mult begins with 2"),
        (
            lambda: (unet(), diffusion_of(model_mean_type=gd.ModelMeanType.PREVIOUS_X)),
            "prediction_type PREVIOUS_X",
        ),
        (
            lambda: (unet(), diffusion_of(model_var_type=gd.ModelVarType.LEARNED)),
            "variance_type LEARNED",
        ),
        (super_resolution, "takes no low-resolution image"),
    ],
)
def test_what_is_refused(made, said, tmp_path):
    with pytest.raises(InputError, match=f"diffusers cannot express this model: .*{said}"):
        export.write_pipeline(*made(), SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r'pip install -e ".\[diffusers\]"'):
        export.write_pipeline(*make(), SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- with diffusers itself


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers", reason="needs improved-diffusion[diffusers]")


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def exported(request, diffusers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "pipeline"
    model, diffusion = make(**request.param)
    difference = export.write_pipeline(model, diffusion, SIZE, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model_index.json", "scheduler", "unet"}
    assert list(folder.parent.iterdir()) == [folder]
    pipeline = export.load_pipeline(diffusers, folder)
    return Exported(model, diffusion, pipeline, difference)


@pytest.mark.slow
def test_outputs_are_equal(exported):
    assert exported.difference < export.TOLERANCE
    generator = th.Generator().manual_seed(5)
    x = th.randn(2, exported.model.in_channels, SIZE, SIZE, generator=generator)
    labels = th.tensor([0, 2]) if exported.model.num_classes else None
    if exported.model.label_dropout:
        labels = th.tensor([0, NO_LABEL])
    there = export.class_labels(labels, exported.model)
    kwargs = {} if labels is None else {"y": labels}
    for t in range(0, exported.diffusion.num_timesteps, 7 * exported.diffusion.num_timesteps // 30):
        with th.no_grad():
            steps = th.tensor([t, t])
            ours = exported.diffusion.call_model(exported.model, x, steps, kwargs)
            theirs = exported.pipeline.unet(x, t, class_labels=there).sample
        assert ours.std() > 0.1  # zeros would agree, too
        th.testing.assert_close(theirs, ours, rtol=0, atol=export.TOLERANCE)


@pytest.mark.parametrize(
    "flags",
    [
        {"learn_sigma": True, "noise_schedule": "cosine"},
        {"predict_xstart": True, "sigma_small": True, "noise_schedule": "polynomial"},
        {"predict_v": True, "noise_schedule": "cosine"},
        {"diffusion_steps": 50},
    ],
)
@pytest.mark.slow
def test_a_whole_sampling_is_equal(flags, diffusers, tmp_path):
    model, diffusion = make(**{"diffusion_steps": 20} | flags)
    export.write_pipeline(model, diffusion, SIZE, tmp_path / "out")
    pipeline = export.load_pipeline(diffusers, tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2,
        generator=th.Generator().manual_seed(3),
        num_inference_steps=diffusion.num_timesteps,
        output_type="pt",
    ).images
    generator = th.Generator().manual_seed(3)
    draw = th.randn
    sample = diffusion.p_sample_loop(
        model,
        (2, 3, SIZE, SIZE),
        noise=draw(2, 3, SIZE, SIZE, generator=generator),
        randn_like=lambda x: draw(x.shape, generator=generator),
    )
    expected = (sample / 2 + 0.5).clamp(0, 1)
    th.testing.assert_close(images, expected, rtol=0, atol=export.TOLERANCE)


@pytest.mark.parametrize(
    "spoil",
    [lambda qkv, heads: qkv.chunk(3), lambda qkv, heads: (math.nan * qkv).chunk(3)],
    ids=["heads apart", "not a number"],
)
@pytest.mark.slow
def test_what_differs_never_gets_its_name(spoil, diffusers, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "split_qkv", spoil)
    with pytest.raises(InputError, match="the exported model differs by"):
        export.write_pipeline(*make(), SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(diffusers, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    model, diffusion = make()
    export.write_pipeline(model.train(), diffusion, SIZE, out)
    assert model.training
    modes = {path.stat().st_mode for path in out.rglob("*.*")}
    assert len(modes) == 1  # the weights are as readable as the rest


@pytest.mark.slow
def test_the_script(diffusers, scripts, tmp_path):
    run, out_dir = tmp_path / "run", tmp_path / "out"
    save_run(run, BASE, class_cond=True, num_classes=3, label_dropout=0.1, diffusion_steps=40)
    flags = {"model_path": run, "out_dir": out_dir, "num_threads": 1}
    out, err = scripts.run_process("export_diffusers.py", **flags)
    assert err == ""
    assert "ema_0.5_000900.pt" in out
    assert float(re.search(r"outputs: (\S+)", out).group(1)) < export.TOLERANCE
    assert "class_labels" in out
    assert "No label, for guidance, is class 3 there" in out
    assert "whole timesteps only" in out
    assert export.load_pipeline(diffusers, out_dir).unet.config.num_class_embeds == 4
