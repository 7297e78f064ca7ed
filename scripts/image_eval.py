"""Judge samples: how far they are from real images, how varied, and what they show.

The figures come with their standard errors, and beside those of real images and of noise in the
samples' place. docs/evaluation.md says what each of them says.
"""

from improved_diffusion import logger
from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import find_data_dir, open_run, prepare, say_what_computes
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.features import Extractor
from improved_diffusion.evaluation.image_sets import find_samples, open_images
from improved_diffusion.evaluation.judge import check_count, judge
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.using import JudgeOptions
from improved_diffusion.reports.verdict_report import RESULTS, save_verdict


def main() -> None:
    options = parse_options(JudgeOptions, __doc__)
    if not options.samples:
        raise InputError("no --samples given; name what image_sample.py made, or a folder")
    options = options.but(reference=find_data_dir(options.reference, "cifar_test", "reference"))
    made = find_samples(options.samples)
    says_classes = made.lower().endswith((".npz", ".npy"))  # and has no names to take them from
    by = "auto" if says_classes and options.labels != "none" else options.labels
    samples = open_images(made, by=by)
    if samples.labels is None and options.labels not in ("auto", "none"):
        raise InputError(f"the samples in {made} have no classes; leave --labels out")
    how = samples.size, samples.channels, options.labels
    reference = open_images(options.reference, *how)
    train = open_images(options.train, *how) if options.train else None
    sets = {"samples": samples, "reference": reference, "train": train}
    for name, images in sets.items():
        if images is None:
            continue
        check_count(name, images)
        kinds = None
        if samples.channels == 1 and images.has_colours:
            kinds = "colour", "grey"
        elif samples.channels > 1 and images.is_grey:
            kinds = "grey", "colour"
        if kinds:
            raise InputError(
                f"the images of --{name} are in {kinds[0]}, the samples in {kinds[1]}; judge them "
                "by images of their own kind"
            )
    prepare(options, alone=True)
    extractor = Extractor(options.features, options.weights, options.precision)
    with open_run("image_eval", options, results=RESULTS) as folder:
        say_what_computes(options.precision)
        logger.log(f"Judging {len(samples)} images of {options.samples} by {extractor.title}")
        verdict = judge(
            extractor,
            samples,
            reference,
            train,
            labels=options.labels != "none",
            spare=folder,
            seed=options.seed,
        )
        logger.log(str(verdict))
        about = {name: getattr(options, name) for name in ("samples", "reference", "train", "seed")}
        about["number format"] = options.precision
        logger.log(f"Saved the figures to {save_verdict(folder, verdict, about)}")


if __name__ == "__main__":
    run(main)
