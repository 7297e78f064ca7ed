"""Programs that import and call what OpenAI's scripts do, with their arguments, in their order."""

import textwrap

import numpy as np
import pytest

SHARED = """
import argparse
import os

import blobfile as bf
import numpy as np
import torch as th
import torch.distributed as dist
import torch.nn.functional as F

from improved_diffusion import dist_util, logger
from improved_diffusion.image_datasets import load_data
from improved_diffusion.resample import create_named_schedule_sampler
from improved_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from improved_diffusion.train_util import TrainLoop


def parse(own, model):
    own.update(model)
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, own)
    return parser.parse_args()


def training_flags():
    return dict(data_dir="", schedule_sampler="uniform", lr=1e-4, weight_decay=0.0,
                lr_anneal_steps=0, batch_size=1, microbatch=-1, ema_rate="0.9999",
                log_interval=10, save_interval=10000, resume_checkpoint="", use_fp16=False,
                fp16_scale_growth=1e-3)


def train(args, model, diffusion, data):
    sampler = create_named_schedule_sampler(args.schedule_sampler, diffusion)
    logger.log("training...")
    TrainLoop(
        model=model, diffusion=diffusion, data=data, batch_size=args.batch_size,
        microbatch=args.microbatch, lr=args.lr, ema_rate=args.ema_rate,
        log_interval=args.log_interval, save_interval=args.save_interval,
        resume_checkpoint=args.resume_checkpoint, use_fp16=args.use_fp16,
        fp16_scale_growth=args.fp16_scale_growth, schedule_sampler=sampler,
        weight_decay=args.weight_decay, lr_anneal_steps=args.lr_anneal_steps,
    ).run_loop()


def load(args, model):
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    model.eval()


def gather(tensor):
    parts = [th.zeros_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return [part.cpu().numpy() for part in parts]


def as_pictures(sample):
    pixels = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def save(name, *arrays):
    if dist.get_rank() == 0:
        path = os.path.join(logger.get_dir(), name)
        logger.log(f"saving to {path}")
        np.savez(path, *arrays)
    dist.barrier()
    logger.log("complete")
"""

IMAGE_TRAIN = """
args = parse(training_flags(), model_and_diffusion_defaults())
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(
    **args_to_dict(args, model_and_diffusion_defaults().keys()))
model.to(dist_util.dev())
data = load_data(data_dir=args.data_dir, batch_size=args.batch_size,
                 image_size=args.image_size, class_cond=args.class_cond)
train(args, model, diffusion, data)
"""

IMAGE_SAMPLE = """
args = parse(dict(clip_denoised=True, num_samples=10000, batch_size=16, use_ddim=False,
                  model_path=""), model_and_diffusion_defaults())
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(
    **args_to_dict(args, model_and_diffusion_defaults().keys()))
load(args, model)
images, labels = [], []
while len(images) * args.batch_size < args.num_samples:
    kwargs = {}
    if args.class_cond:
        kwargs["y"] = th.randint(
            low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
    loop = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
    sample = loop(model, (args.batch_size, 3, args.image_size, args.image_size),
                  clip_denoised=args.clip_denoised, model_kwargs=kwargs)
    images.extend(gather(as_pictures(sample)))
    if args.class_cond:
        labels.extend(gather(kwargs["y"]))
    logger.log(f"created {len(images) * args.batch_size} samples")
arrays = [np.concatenate(part, axis=0)[: args.num_samples] for part in (images, labels) if part]
save("samples.npz", *arrays)
"""

IMAGE_NLL = """
args = parse(dict(data_dir="", clip_denoised=True, num_samples=1000, batch_size=1,
                  model_path=""), model_and_diffusion_defaults())
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(
    **args_to_dict(args, model_and_diffusion_defaults().keys()))
load(args, model)
data = load_data(data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size,
                 class_cond=args.class_cond, deterministic=True)
metrics = {"vb": [], "mse": [], "xstart_mse": []}
bits, done = [], 0
while done < args.num_samples:
    batch, kwargs = next(data)
    batch = batch.to(dist_util.dev())
    kwargs = {k: v.to(dist_util.dev()) for k, v in kwargs.items()}
    found = diffusion.calc_bpd_loop(
        model, batch, clip_denoised=args.clip_denoised, model_kwargs=kwargs)
    for key, values in metrics.items():
        terms = found[key].mean(dim=0) / dist.get_world_size()
        dist.all_reduce(terms)
        values.append(terms.detach().cpu().numpy())
    total = found["total_bpd"].mean() / dist.get_world_size()
    dist.all_reduce(total)
    bits.append(total.item())
    done += dist.get_world_size() * batch.shape[0]
    logger.log(f"done {done} samples: bpd={np.mean(bits)}")
for key, values in metrics.items():
    save(f"{key}_terms.npz", np.mean(np.stack(values), axis=0))
"""

SUPER_RES_TRAIN = """
def batches(args):
    data = load_data(data_dir=args.data_dir, batch_size=args.batch_size,
                     image_size=args.large_size, class_cond=args.class_cond)
    for large, kwargs in data:
        kwargs["low_res"] = F.interpolate(large, args.small_size, mode="area")
        yield large, kwargs

args = parse(training_flags(), sr_model_and_diffusion_defaults())
dist_util.setup_dist()
logger.configure()
model, diffusion = sr_create_model_and_diffusion(
    **args_to_dict(args, sr_model_and_diffusion_defaults().keys()))
model.to(dist_util.dev())
train(args, model, diffusion, batches(args))
"""

SUPER_RES_SAMPLE = """
def low_resolution(args):
    with bf.BlobFile(args.base_samples, "rb") as file:
        images = np.load(file)["arr_0"]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    while True:
        rows = [images[i] for i in range(rank, len(images), ranks)][: args.batch_size]
        batch = th.from_numpy(np.stack(rows)).float() / 127.5 - 1.0
        yield {"low_res": batch.permute(0, 3, 1, 2)}

args = parse(dict(clip_denoised=True, num_samples=10000, batch_size=16, use_ddim=False,
                  base_samples="", model_path=""), sr_model_and_diffusion_defaults())
dist_util.setup_dist()
logger.configure()
model, diffusion = sr_create_model_and_diffusion(
    **args_to_dict(args, sr_model_and_diffusion_defaults().keys()))
load(args, model)
data = low_resolution(args)
images = []
while len(images) * args.batch_size < args.num_samples:
    kwargs = {k: v.to(dist_util.dev()) for k, v in next(data).items()}
    sample = diffusion.p_sample_loop(
        model, (args.batch_size, 3, args.large_size, args.large_size),
        clip_denoised=args.clip_denoised, model_kwargs=kwargs)
    images.extend(gather(as_pictures(sample)))
save("samples.npz", np.concatenate(images, axis=0)[: args.num_samples])
"""


@pytest.fixture
def run_program(scripts, tmp_path, monkeypatch):
    """Run a program with flags, its log going to a folder of that name."""

    def run(name, program, env=None, **flags):
        path = tmp_path / f"{name}.py"
        path.write_text(f"{SHARED}{textwrap.dedent(program)}\nraise SystemExit(0)\n")
        for key, value in {"OPENAI_LOGDIR": str(tmp_path / name), **(env or {})}.items():
            monkeypatch.setenv(key, value)
        out, _ = scripts.run(path, **flags)
        return tmp_path / name, out

    return run


def test_images(run_program, tiny, images):
    model = tiny | {"class_cond": True}
    settings = {"data_dir": images, "batch_size": 4, "microbatch": 2, "log_interval": 1}
    settings |= {"lr_anneal_steps": 2, "schedule_sampler": "loss-second-moment"}
    trained, out = run_program("image_train", IMAGE_TRAIN, **model, **settings)
    assert (trained / "progress.csv").read_text().count("\n") == 3
    assert "training..." in (trained / "log.txt").read_text()
    assert "| grad_norm" in out  # the reference's tables, where nothing else is asked for
    path = trained / "ema_0.9999_000002.pt"

    settings = {"model_path": path, "num_samples": 3, "batch_size": 2}
    sampled, _ = run_program("image_sample", IMAGE_SAMPLE, **model, **settings)
    with np.load(sampled / "samples.npz") as file:
        assert file["arr_0"].shape == (3, 16, 16, 3)
        assert file["arr_1"].shape == (3,)
    settings = {"model_path": path, "num_samples": 4, "batch_size": 2, "data_dir": images}
    evaluated, out = run_program("image_nll", IMAGE_NLL, **model, **settings)
    assert out.count("bpd=") == 2
    for key in ("vb", "mse", "xstart_mse"):
        with np.load(evaluated / f"{key}_terms.npz") as file:
            assert np.isfinite(file["arr_0"]).all()


def test_super_resolution(run_program, tiny_sr, images, tmp_path):
    settings = {"data_dir": images, "batch_size": 2, "save_interval": 2}
    environment = {"DIFFUSION_TRAINING_TEST": "1", "OPENAI_LOG_FORMAT": "csv"}
    trained, out = run_program(
        "super_res_train", SUPER_RES_TRAIN, env=environment, **tiny_sr, **settings
    )
    assert out == ""
    small = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", small)
    settings = {"model_path": trained / "model000002.pt", "base_samples": tmp_path / "small.npz"}
    settings |= {"num_samples": 2, "batch_size": 2}
    sampled, _ = run_program("super_res_sample", SUPER_RES_SAMPLE, **tiny_sr, **settings)
    with np.load(sampled / "samples.npz") as file:
        assert file["arr_0"].shape == (2, 16, 16, 3)
