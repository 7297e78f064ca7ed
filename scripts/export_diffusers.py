"""Turn a trained image model into a folder that diffusers' DDPMPipeline loads."""

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.trained import about_model, load_trained, parse_for_model
from improved_diffusion.errors import InputError
from improved_diffusion.export import diffusers
from improved_diffusion.options.using import ExportOptions
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.script_util import build_diffusion, build_model
from improved_diffusion.system import cpu


def main() -> None:
    options, trained = parse_for_model(ExportOptions, __doc__)
    if not options.out_dir:
        raise InputError("no --out_dir given; name a new folder")
    diffusers.check_out_dir(options.out_dir)
    cpu.configure_cpu(options.num_threads)
    model, diffusion = build_model(options), build_diffusion(options)
    load_trained(model, options.model_path, options.ema_correction)
    print(*about_model(options, trained, model), sep="\n")
    difference = diffusers.write_pipeline(model, diffusion, options.image_size, options.out_dir)
    print(f"Largest difference of the outputs: {difference:.1e}")
    for line in usage(options, diffusion):
        print(line)


def usage(options: ExportOptions, diffusion: SpacedDiffusion) -> list[str]:
    """What to do with the folder, and what not."""
    out_dir = options.out_dir
    lines = [f"Pipeline is in {out_dir}: diffusers.DDPMPipeline.from_pretrained({out_dir!r})"]
    if options.class_cond:
        lines.append("DDPMPipeline gives no labels: call its unet with class_labels, step by step")
        if options.label_dropout:
            lines.append(f"No label, for guidance, is class {options.num_classes} there")
    else:
        lines.append(f"All timesteps: pipeline(num_inference_steps={diffusion.num_timesteps})")
    if diffusers.tabulates_time(diffusion):
        lines.append("Its timestep embedding is a table: take schedulers of whole timesteps only")
    return lines


if __name__ == "__main__":
    run(main)
