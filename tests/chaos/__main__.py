"""The campaign as a command: `python -m tests.chaos --out FOLDER`, or `make chaos`. Its last line has the figures; the
exit code is 1 if anything was wrong."""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

import dpo.sft  # noqa: E402  (copies of this process run the stages, and are spared the imports)
import dpo.train  # noqa: E402, F401
import evaluation.measure  # noqa: E402
import evaluation.report.plots  # noqa: E402, F401
import iterate  # noqa: E402, F401
from tests.chaos.campaign import campaign, parser  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends the commands, too
    sys.exit(campaign(parser().parse_args()))
