"""Put finished runs side by side: a workbook, a picture of their curves, one of their samples.

Beside each run's log it takes what it finds in folders within the run's: bits/dim of image_nll.py
(--log_dir RUN/nll), samples of image_sample.py (--log_dir RUN/ddpm), and what image_eval.py says
of such samples (--log_dir RUN/judged). Of more than six runs, any of them evaluated, the picture
has figures in place of the curves; if all were judged, samples are shown of eight, best to worst.
"""

from argparse import Namespace
from pathlib import Path

from improved_diffusion.commands.cli import check_out, run, say_replaced
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser
from improved_diffusion.reports import comparison, comparison_report


def main() -> None:
    args = parse_flags()
    runs = [comparison.read_run(folder) for folder in args.runs]
    names = [each.name for each in runs]
    if len(set(names)) < len(names):
        raise InputError(f"runs must have different folder names, got {', '.join(names)}")
    out = Path(args.out)
    pictures = {"curves": out.with_suffix(".png")}
    if any(each.pictures for each in runs):
        pictures["samples"] = out.with_name(f"{out.stem}_samples.png")
    say_replaced(out, *pictures.values())
    comparison_report.save_curves(runs, pictures["curves"], args.note)
    if "samples" in pictures:
        comparison_report.save_samples(runs, pictures["samples"], args.note)
    comparison_report.save_workbook(runs, out, pictures, args.note)
    for title, table in comparison.tables(runs).items():
        print(f"{title}:", table.to_string(index=False, float_format="{:.5g}".format), "", sep="\n")
    print(comparison.WARNING)
    if not any(each.evaluations for each in runs):
        print("No run has bits/dim in its folder: image_nll.py --model_path RUN --log_dir RUN/nll")
    for path in (out, *pictures.values()):
        print(path.absolute())


def parse_flags() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", default="compare_runs.xlsx", help="workbook to write; PNGs beside")
    parser.add_argument("--note", default="", help="a line to stand in the workbook and the PNGs")
    args = parser.parse_args()
    check_out(args.out, ".xlsx")
    return args


if __name__ == "__main__":
    run(main)
