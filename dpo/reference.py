"""The reference model's log-probabilities: computed by the trainer's forward before training, kept in a file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpo.data import Example
from dpo.loss import completion_logprob
from dpo.packing import micro_batches
from dpo.parallel import World, load_sharded, reshard
from model.dtype import training_dtype
from model.llama import Llama
from stages.files import is_complete, read_jsonl, stage_key, write_jsonl, write_manifest
from stages.progress import progress
from stages.settings import Settings


def reference_logprob(
    world: World, model: Llama, examples: Sequence[Example], weights: Path, digest: str, cache: Path, settings: Settings
) -> Tensor:
    """Log-probabilities of chosen and rejected of each pair under the weights in a folder, of a digest, fp32 [e, 2].

    Read from the folder `cache` if it has a file for these pairs, weights, dtype and attention. Otherwise `model` is
    filled with the reference's weights, and the caller must load the policy's weights afterwards.
    """
    attention, dtype = settings.model.attention, training_dtype(settings.model.dtype, world.device)
    content = [[pair.id, pair.prompt, pair.completions] for pair in examples]
    key = stage_key("reference", [content, digest, dtype, attention])
    path = cache / key[:16] / "logprobs.jsonl"
    if not world.agree(lambda: is_complete(path.parent, key)):
        load_sharded(model, weights)
        sums_e2 = torch.zeros(len(examples), 2, device=world.device)
        indices, options = range(len(examples)), settings.trainer
        batches = micro_batches(examples, indices, options, world.rank, world.size, world.device)
        with torch.no_grad(), progress(len(batches), "reference", "batch", first=world.first) as bar:
            for batch in batches:
                logprob_n = completion_logprob(model, batch, attention)
                if batch.real:
                    sums_e2[batch.examples_e] = batch.sums(logprob_n)
                bar.update()
        reshard(model)
        pairs = zip(examples, world.sum(sums_e2).tolist(), strict=True)
        if world.first:
            write_jsonl(path, ({"id": pair.id, "chosen": row[0], "rejected": row[1]} for pair, row in pairs))
            write_manifest(path.parent, "reference", key, [path])
    rows = world.agree(lambda: [(row["chosen"], row["rejected"]) for row in read_jsonl(path)])
    return torch.tensor(rows, dtype=torch.float32, device=world.device)
