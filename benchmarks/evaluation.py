"""Speed of evaluation, each figure as a ratio to something measured in turns with it.

    python benchmarks/evaluation.py [--only text tasks report] [--rounds 3]

`evaluation_FIGURE.py` says what is measured and has a `main(rounds)` that prints the table.
"""

import argparse
import importlib

FIGURES = ("text", "tasks", "report")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for figure in options.only:
        importlib.import_module(f"evaluation_{figure}").main(options.rounds)


if __name__ == "__main__":
    main()
