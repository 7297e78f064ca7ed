"""Folders of runs whose tiny models say something, without a training."""

import json

import torch as th

from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults


def save_run(folder, tiny, seed=0, data=None, **flags):
    """A run's folder with an EMA that says something, and its model and diffusion."""
    flags = model_and_diffusion_defaults() | tiny | flags
    th.manual_seed(seed)
    model, diffusion = create_model_and_diffusion(**flags)
    with th.no_grad():
        for p in model.parameters():
            p.copy_(th.randn_like(p) * 0.1)
    folder.mkdir()
    for name in ("model000900.pt", "ema_0.5_000900.pt", "state000900.pt"):
        th.save(model.state_dict(), folder / name)
    (folder / "config.json").write_text(json.dumps({"flags": flags, "data": data or {}}))
    return model.eval(), diffusion
