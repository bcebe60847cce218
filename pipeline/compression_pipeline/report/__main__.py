"""python -m compression_pipeline.report --run RUN.yaml --store STORE --output FOLDER"""

import argparse
import sys
from pathlib import Path

from compression_pipeline.errors import UserError

from .write import write_report


def main() -> int:
    """Exit code 0, or 64 with a sentence where the run can't be read."""
    parser = argparse.ArgumentParser(prog="python -m compression_pipeline.report", description="Write a run's report.")
    parser.add_argument("--run", type=Path, required=True, help="the run's resource with its status (run.yaml)")
    parser.add_argument("--store", type=Path, required=True, help="the store with the run's artifacts")
    parser.add_argument("--output", type=Path, required=True, help="folder to write index.html and loss.svg into")
    arguments = parser.parse_args()
    try:
        page = write_report(arguments.run, arguments.store, arguments.output)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_class.code
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
