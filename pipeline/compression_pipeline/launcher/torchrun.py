"""torchrun that dies with its launcher: `python -m compression_pipeline.launcher.torchrun ARGUMENTS`."""

import os
import sys

from compression_pipeline.machine import die_with_parent

from .ranks import LAUNCHER_VARIABLE

if __name__ == "__main__":
    die_with_parent(int(os.environ[LAUNCHER_VARIABLE]))
    from torch.distributed.run import main  # seconds, in which the launcher may end

    main(sys.argv[1:])
