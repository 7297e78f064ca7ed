"""Write the CSV log of a training run as an Excel workbook with charts."""

from pathlib import Path

from improved_diffusion.commands.cli import check_out, run, say_replaced
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser
from improved_diffusion.reports.run_workbook import export_workbook
from improved_diffusion.training.previews import newest_picture


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--log_dir", default="", help="folder of a run, which has a progress.csv")
    parser.add_argument("--csv", default="", help="the log itself, instead of --log_dir")
    parser.add_argument("--out", default="", help="workbook to write (empty: results.xlsx beside)")
    parser.add_argument("--picture", default="", help="PNG to show (empty: the run's newest)")
    parser.add_argument("--note", default="", help="a line to stand by the figures and the picture")
    args = parser.parse_args()
    if bool(args.log_dir) == bool(args.csv):
        raise InputError("give either --log_dir, the folder of a run, or --csv, a progress.csv")
    csv_path = Path(args.csv or Path(args.log_dir, "progress.csv"))
    out = Path(args.out) if args.out else csv_path.with_name("results.xlsx")
    if args.out:
        check_out(out, ".xlsx")
    say_replaced(out)
    picture = args.picture or newest_picture(str(csv_path.parent))
    export_workbook(csv_path, out, picture=picture, note=args.note)
    print(out.absolute())


if __name__ == "__main__":
    run(main)
