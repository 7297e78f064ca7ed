"""Export to diffusers: the mapping, what it refuses, and equal outputs where diffusers is there."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.errors import InputError
from improved_diffusion.export import diffusers as export
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.script_util import (
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from improved_diffusion.unet import AttentionBlock, UNetModel

PROJECT = Path(__file__).resolve().parents[2]
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
    return randomised(model), diffusion


def randomised(model):
    generator = th.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = th.randn(p.shape, generator=generator) * 0.05 + (0.5 if p.ndim == 1 else 0)
    return model.eval().requires_grad_(False)


# --- the mapping


@pytest.mark.parametrize(
    ("ours", "theirs"),
    {
        "time_embed.0.weight": "time_embedding.linear_1.weight",
        "label_emb.weight": "class_embedding.weight",
        "input_blocks.0.0.bias": "conv_in.bias",
        "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
        "input_blocks.2.1.norm.bias": "down_blocks.0.attentions.1.group_norm.bias",
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.4.0.skip_connection.bias": "down_blocks.1.resnets.0.conv_shortcut.bias",
        "middle_block.0.emb_layers.1.bias": "mid_block.resnets.0.time_emb_proj.bias",
        "middle_block.1.qkv.weight": "mid_block.attentions.0.to_qkv.weight",
        "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.2.2.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.3.1.proj_out.bias": "up_blocks.1.attentions.0.to_out.0.bias",
        "out.2.weight": "conv_out.weight",
    }.items(),
)
def test_names(ours, theirs):
    assert export.diffusers_name(ours, num_res_blocks=2) == theirs


@pytest.mark.parametrize("name", ["weight", "input_blocks.1.0.colour.weight", "middle_block.x"])
def test_unknown_names(name):
    with pytest.raises(KeyError):
        export.diffusers_name(name, num_res_blocks=2)


@pytest.mark.parametrize("flags", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_no_two_entries_share_a_name(flags):
    model, diffusion = make(**flags)
    names = [export.diffusers_name(name, model.num_res_blocks) for name in model.state_dict()]
    assert len(set(names)) == len(names)
    converted = export.convert_weights(model, diffusion)
    count = sum(value.numel() for value in converted.values())
    table = converted.get("time_proj.weight", th.empty(0)).numel()
    assert count == sum(p.numel() for p in model.parameters()) + table


def test_heads_stay_together():
    channels, heads, positions = 64, 4, 5
    block = randomised(AttentionBlock(channels, heads))
    x = th.randn(2, channels, positions, generator=th.Generator().manual_seed(1))
    weights = export.split_qkv(block.qkv.weight[..., 0], heads)
    biases = export.split_qkv(block.qkv.bias, heads)
    rows = block.norm(x).mT
    q, k, v = (
        (rows @ weight.T + bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for weight, bias in zip(weights, biases, strict=True)
    )
    h = th.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = x + block.proj_out(h.mT)
    th.testing.assert_close(block(x), expected)


def test_the_table_holds_scaled_timesteps():
    _, diffusion = make(diffusion_steps=4000)
    table = export.embedding_table(diffusion, 32)
    assert table.shape == (4000, 32)
    th.testing.assert_close(table[6], export.timestep_embedding(th.tensor([1.5]), 32)[0])


def test_the_scheduler_gets_the_exact_betas():
    _, diffusion = make(learn_sigma=True, noise_schedule="cosine", diffusion_steps=50)
    config = export.scheduler_config(diffusion)
    assert json.loads(json.dumps(config))["trained_betas"] == list(diffusion.betas)
    assert config["variance_type"] == "learned_range"
    assert config["num_train_timesteps"] == 50


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


def diffusion_of(mean_type, var_type):
    return SpacedDiffusion(
        range(10),
        betas=gd.get_named_beta_schedule("cosine", 10),
        model_mean_type=mean_type,
        model_var_type=var_type,
        loss_type=gd.LossType.MSE,
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"attention_resolutions": "16,4"}, "one attention_head_dim .* 8 and 16 channels wide"),
        ({"attention_resolutions": "16"}, "one attention_head_dim"),
        ({"num_heads_upsample": 2}, "heads here are 16 and 32 channels wide"),
        ({"timestep_respacing": "10"}, "respaced.*num_inference_steps"),
        ({"timestep_respacing": "10", "num_heads_upsample": 2}, "attention_head_dim.*respaced"),
    ],
)
def test_flags_that_are_refused(flags, said):
    model, diffusion = make(**flags)
    with pytest.raises(InputError, match=f"diffusers cannot express this model: .*{said}"):
        export.check_expressible(model, diffusion)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"conv_resample": False}, "conv_resample is False"),
        ({"dims": 1}, "images of two dimensions"),
        ({"model_channels": 32, "channel_mult": (2, 2)}, "channel_mult begins with 2"),
    ],
)
def test_models_that_are_refused(settings, said):
    _, diffusion = make()
    with pytest.raises(InputError, match=said):
        export.check_expressible(unet(**settings), diffusion)


@pytest.mark.parametrize(
    ("mean_type", "var_type", "said"),
    [
        (gd.ModelMeanType.PREVIOUS_X, gd.ModelVarType.FIXED_LARGE, "prediction_type PREVIOUS_X"),
        (gd.ModelMeanType.EPSILON, gd.ModelVarType.LEARNED, "variance_type LEARNED"),
    ],
)
def test_diffusions_that_are_refused(mean_type, var_type, said):
    with pytest.raises(InputError, match=said):
        export.check_expressible(unet(), diffusion_of(mean_type, var_type))


def test_super_resolution_is_refused(tiny_sr):
    flags = sr_model_and_diffusion_defaults() | tiny_sr
    with pytest.raises(InputError, match="takes no low-resolution image"):
        export.check_expressible(*sr_create_model_and_diffusion(**flags))


# --- the folder


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[diffusers\]'"):
        export.write_pipeline(*make(), SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "is a file"), ("full", "is not empty"), ("missing/out", "does not exist; make it")],
)
def test_a_folder_that_cannot_be(name, said, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("")
    with pytest.raises(InputError, match=said):
        export.write_pipeline(*make(), SIZE, tmp_path / name)
    assert (tmp_path / "full" / "kept").exists()


class Unequal:
    """Stands for a pipeline that does not compute what our model does."""

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")

    @staticmethod
    def unet(x, t, class_labels=None):
        return SimpleNamespace(sample=x + float("nan"))


def test_what_differs_never_gets_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "import_diffusers", lambda: SimpleNamespace(__version__="0"))
    monkeypatch.setattr(export, "build_pipeline", lambda *args: Unequal())
    monkeypatch.setattr(export, "load_pipeline", lambda *args: Unequal())
    with pytest.raises(InputError, match=r"differs by nan .* nothing was written"):
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
    kwargs = {} if labels is None else {"y": labels}
    for t in range(0, exported.diffusion.num_timesteps, 7 * exported.diffusion.num_timesteps // 30):
        with th.no_grad():
            steps = th.tensor([t, t])
            ours = exported.diffusion.call_model(exported.model, x, steps, kwargs)
            theirs = exported.pipeline.unet(x, t, class_labels=labels).sample
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


@pytest.mark.slow
def test_a_wrong_layout_of_the_heads_is_noticed(diffusers, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "split_qkv", lambda qkv, heads: qkv.chunk(3))
    with pytest.raises(InputError, match="the exported model differs by"):
        export.write_pipeline(*make(), SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(diffusers, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export.write_pipeline(*make(), SIZE, out)
    modes = {path.stat().st_mode for path in out.rglob("*.*")}
    assert len(modes) == 1  # the weights are as readable as the rest


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a run that has an EMA."""
    folder = tmp_path / "run"
    folder.mkdir()
    flags = {"class_cond": True, "num_classes": 3, "diffusion_steps": 40}
    model, _ = make(**flags)
    for name in ("model000009.pt", "ema_0.5_000009.pt", "state000009.pt"):
        th.save(model.state_dict(), folder / name)
    config = {"flags": model_and_diffusion_defaults() | BASE | flags}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_the_script(diffusers, scripts, run_folder, tmp_path):
    out_dir = tmp_path / "out"
    flags = {"model_path": run_folder, "out_dir": out_dir, "num_threads": 1}
    out, err = scripts.run("export_diffusers.py", **flags)
    assert err == ""
    assert "ema_0.5_000009.pt" in out
    assert float(re.search(r"outputs: (\S+)", out).group(1)) < export.TOLERANCE
    assert "class_labels" in out
    assert "whole timesteps only" in out
    assert export.load_pipeline(diffusers, out_dir).unet.config.num_class_embeds == 3


@pytest.mark.slow
def test_the_script_without_diffusers(scripts, run_folder, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "diffusers.py").write_text("raise ImportError('blocked')\n")
    path = {"PYTHONPATH": os.pathsep.join(map(str, (blocked, PROJECT)))}
    flags = {"model_path": run_folder, "out_dir": tmp_path / "out", "num_threads": 1}
    _, err = scripts.run("export_diffusers.py", status=2, env=path, **flags)
    assert len(err.splitlines()) == 1
    assert "pip install -e '.[diffusers]'" in err
    assert not (tmp_path / "out").exists()
