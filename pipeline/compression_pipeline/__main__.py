"""`python -m compression_pipeline PHASE`: the launcher."""

import sys

from .launcher.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
