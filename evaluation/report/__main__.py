import argparse
from pathlib import Path

from evaluation.report import write_report
from stages.command import UserError, command
from stages.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one run, or several side by side, as one HTML file.")
    parser.add_argument("runs", nargs="*", type=Path, help="folders such as runs/smollm2-135m")
    parser.add_argument("--config", type=Path, help="in place of folders: the run with this config's name")
    parser.add_argument("--out", type=Path, help="default: report.html in the run's folder, of several in that above")
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.config):
        raise UserError("evaluation.report: name either folders of runs or --config")
    runs = arguments.runs or [Path("runs") / load_settings(arguments.config).name]
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    write_report(runs, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    command(main)
