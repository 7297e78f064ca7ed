"""Put finished runs side by side: a workbook, a picture of their curves, one of their samples.

Beside each run's log it takes what it finds in folders within the run's: the bits/dim that
image_nll.py left there (--log_dir RUN/nll) and the samples of image_sample.py
(--log_dir RUN/ddpm).
"""

from argparse import Namespace
from pathlib import Path

from improved_diffusion.commands import cli
from improved_diffusion.errors import InputError
from improved_diffusion.reports import comparison, comparison_report


def main() -> None:
    args = parse_flags()
    runs = [comparison.read_run(folder) for folder in args.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"runs must have different folder names, got {', '.join(names)}")
    out = Path(args.out)
    curves, samples = (out.with_name(f"{out.stem}{end}.png") for end in ("", "_samples"))
    comparison_report.save_curves(runs, curves, args.note)
    found = comparison_report.save_samples(runs, samples, args.note)
    comparison_report.save_workbook(runs, out, samples if found else None, args.note)
    print_tables(runs)
    for path in (out, curves, *([samples] if found else [])):
        print(path.absolute())


def parse_flags() -> Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", default="compare_runs.xlsx", help="workbook to write; PNGs beside")
    parser.add_argument("--note", default="", help="a line to stand in the workbook and the PNGs")
    args = parser.parse_args()
    out = Path(args.out)
    if out.suffix != ".xlsx" or out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"--out must be an .xlsx file in a folder that exists, got {args.out}")
    return args


def print_tables(runs: list[comparison.Run]) -> None:
    """What the summary of the workbook says, in plain lines."""
    for run in runs:
        print(_line(comparison.facts(run)))
    print(comparison.WARNING)
    if not any(run.evaluations for run in runs):
        print("No run has bits/dim in its folder: image_nll.py --model_path RUN --log_dir RUN/nll")
    for table in (comparison.bits_table(runs), comparison.difference_table(runs)):
        for row in zip(*table.values(), strict=True):
            print(_line(dict(zip(table, row, strict=True))))


def _line(values: dict[str, object]) -> str:
    shown = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()}
    return "; ".join(f"{key}: {value}" for key, value in shown.items() if value is not None)


if __name__ == "__main__":
    cli.run(main)
