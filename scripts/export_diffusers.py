"""Turn a trained image model into a folder that diffusers' DDPMPipeline loads."""

from improved_diffusion.commands import cli
from improved_diffusion.commands.sampling import about_model, load_trained, parse_flags_for_model
from improved_diffusion.errors import InputError
from improved_diffusion.export import diffusers
from improved_diffusion.models.architecture import infer_flags
from improved_diffusion.script_util import (
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from improved_diffusion.training.checkpoints import load_model_file


def main() -> None:
    model_defaults = model_and_diffusion_defaults()
    args = parse_flags_for_model(__doc__, export_defaults(), model_defaults)
    if not args.out_dir:
        raise InputError("no --out_dir given; name a new folder")
    diffusers.check_out_dir(args.out_dir)
    refuse_super_resolution(args.model_path)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_defaults))
    load_trained(model, args.model_path)
    print(*about_model(args, model), sep="\n")
    outputs, steps = diffusers.write_pipeline(model.cpu(), diffusion, args.image_size, args.out_dir)
    print(f"Largest difference of the outputs: {outputs:.1e}, of a step: {steps:.1e}")
    for line in usage(args.out_dir, diffusion, args.class_cond):
        print(line)


def export_defaults() -> dict[str, object]:
    return {"model_path": "", "out_dir": "", "num_threads": 0}


def refuse_super_resolution(model_path: str) -> None:
    if infer_flags(load_model_file(model_path)).get("super_resolution"):
        raise InputError(
            f"{model_path} is a super-resolution model, which diffusers cannot express: its "
            "UNet2DModel takes no low-resolution image"
        )


def usage(out_dir: str, diffusion, class_cond: bool) -> list[str]:
    """What to do with the folder, and what not."""
    lines = [f"Pipeline is in {out_dir}: diffusers.DDPMPipeline.from_pretrained({out_dir!r})"]
    if class_cond:
        lines.append("DDPMPipeline gives no labels: call its unet with class_labels, step by step")
    else:
        lines.append(f"All timesteps: pipeline(num_inference_steps={diffusion.num_timesteps})")
    if diffusers.tabulates_time(diffusion):
        lines.append("Its timestep embedding is a table: take schedulers of whole timesteps only")
    return lines


if __name__ == "__main__":
    cli.run(main)
