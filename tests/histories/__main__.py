"""`python -m tests.histories worker`: the command `orcheo-dispatch`, whose calls to the database are recorded."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orcheo_dispatch.ops.cli import main
from tests.histories.recorder import VARIABLE, Recorder
from tests.histories.wrapped import wrap

if __name__ == "__main__":
    if VARIABLE in os.environ:
        wrap(Recorder(Path(os.environ[VARIABLE]), sys.argv[1]))
    main()
