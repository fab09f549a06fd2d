"""Supervised fine-tuning: `torchrun -m dpo.sft` trains the seed on judging and meta-judging examples.

The loop is that of `dpo/train.py`; the loss is the weighted mean of -log pi over the completions' tokens.
"""

from dpo.train import run_training, training_settings
from stages.shards import end_process
from stages.stage import Stage

SFT = Stage(
    "sft", "dpo.sft", run_training, lambda settings, _: training_settings(settings, settings.sft, "curriculum"),
    ("model", "data"), lists=("data",), ranks="group",
)  # fmt: skip

if __name__ == "__main__":
    end_process(SFT.main)
