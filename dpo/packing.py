"""Micro-batches: examples packed flat under a token budget, the same number on every rank.

Where it saves enough, a shared prefix is computed once (`kernels.segments.Segments`): for DPO the prompt of a pair,
for SFT the common beginning of prompts. Shapes: t tokens, n targets, e examples, c completions of each example.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dpo.data import Example
from kernels.launch import CPU, to_device
from kernels.segments import Segments
from stages.settings import TrainerOptions

LEAST_SHARED = 16  # shortest shared prefix, in tokens: a shorter one, one more segment, costs as much as it saves


@dataclass(frozen=True)
class MicroBatch:  # packed sequences, and the positions that predict the completions' tokens; integers are int64
    examples: list[int]  # indices into the training examples
    real: bool  # False: a stand-in of a rank without work, so that collectives match; its loss is left out
    completions: int  # of each example
    segments: Segments
    examples_e: Tensor  # `examples`, on the device
    ids_t: Tensor  # what the model reads
    positions_t: Tensor  # within each sequence
    sources_n: Tensor  # index into t of the token that predicts the target
    targets_n: Tensor  # the completions' tokens
    sequences_n: Tensor  # index into the e * c completions
    weights_n: Tensor  # fp32; in the SFT loss

    @property
    def tokens(self) -> int:
        return self.segments.borders[-1]

    def sums(self, values_n: Tensor) -> Tensor:
        """Sums over each completion, fp32 [e, c]. `index_put` is deterministic only on CUDA, `index_add` on a CPU."""
        sums, at_n = values_n.new_zeros(len(self.examples) * self.completions), self.sequences_n
        cuda = values_n.is_cuda
        sums = sums.index_put((at_n,), values_n, accumulate=True) if cuda else sums.index_add(0, at_n, values_n)
        return sums.view(-1, self.completions)

    def predicting(self, hidden_td: Tensor) -> Tensor:
        """Hidden states that predict a target, [n, d]; backward is deterministic."""
        return hidden_td[self.sources_n] if hidden_td.is_cuda else hidden_td.index_select(0, self.sources_n)


def own_prefix(example: Example, options: TrainerOptions) -> int:
    """Prompt tokens that the completions of one example share."""
    shares = options.share_prefixes and len(example.completions) > 1
    return len(example.prompt) if shares and len(example.prompt) >= LEAST_SHARED else 0


def keep_usable(
    examples: Iterable[Example], options: TrainerOptions, context: int
) -> tuple[list[Example], dict[str, int]]:
    """The examples that can be trained on, and the numbers of dropped ones by reason. Nothing is truncated."""
    kept, dropped = list[Example](), Counter[str]()
    for example in examples:
        prompt, completions = example.prompt, example.completions
        if not prompt or not all(completions):
            dropped["dropped.empty"] += 1
        elif len(completions) == 2 and completions[0] == completions[1]:
            dropped["dropped.identical"] += 1
        elif len(prompt) + max(map(len, completions)) > context:
            dropped["dropped.over_context"] += 1
        elif example.tokens(own_prefix(example, options)) > options.tokens_per_microbatch:
            dropped["dropped.over_token_budget"] += 1
        else:
            kept.append(example)
    return kept, dict(dropped)


class Group(NamedTuple):  # indices of examples whose prompts share their first `prefix` tokens
    members: list[int]
    prefix: int


def common_prefixes(examples: Sequence[Example], indices: Sequence[int]) -> list[Group]:
    """Groups of SFT examples by common beginnings of their prompts, which save the most tokens: runs in the sorted
    prompts. The first `end` save best[end], the maximum over a run's start of best[start] + (members - 1) * prefix."""
    order = sorted(indices, key=lambda i: examples[i].prompt)
    prompts = [examples[i].prompt for i in order]
    common = [_common(*pair) for pair in pairwise(prompts)]
    best, groups = [0], [list[Group]()]  # groups[end]: those of the first `end` prompts
    for end in range(1, len(order) + 1):
        choices, prefix = [(best[-1], end - 1, 0)], len(prompts[end - 1])
        for start in range(end - 2, -1, -1):
            prefix = min(prefix, common[start])
            if prefix < LEAST_SHARED:
                break
            choices.append((best[start] + (end - start - 1) * prefix, start, prefix))
        saved, start, prefix = max(choices, key=lambda choice: choice[0])
        best.append(saved)
        groups.append([Group(order[start:end], prefix), *groups[start]] if prefix else groups[start])
    return groups[-1]


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pack(costs: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Indices of `costs`, each at most `budget`, in the fewest bins (a multiple of `ranks`) that greedy packing finds:
    the highest cost first, each into the emptiest bin."""
    assert max(costs, default=0) <= budget
    for count in itertools.count(ranks * max(1, -(-sum(costs) // max(1, budget * ranks))), ranks):
        bins, loads = [list[int]() for _ in range(count)], [(0, i) for i in range(count)]
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            load, least = loads[0]
            if load + costs[index] > budget:
                break
            heapq.heapreplace(loads, (load + costs[index], least))
            bins[least].append(index)
        else:
            break
    return bins


def pack_sharing(
    examples: Sequence[Example], indices: Sequence[int], ranks: int, budget: int
) -> tuple[dict[int, int], list[list[int]]]:
    """Shared prompt tokens of each SFT example, and the bins of positions in `indices`: of three groupings (those that
    save most; one group of all prompts; none) the one with the fewest bins, then tokens."""
    prompts = [examples[i].prompt for i in indices]
    everyone = Group(list(indices), _common(min(prompts), max(prompts)))
    packings = []
    for groups in (common_prefixes(examples, indices), [everyone] if everyone.prefix >= LEAST_SHARED else [], []):
        prefixes = dict.fromkeys(indices, 0) | {i: group.prefix for group in groups for i in group.members}
        rest = [examples[i].tokens() - prefixes[i] for i in indices]
        reserved = sum(group.prefix for group in groups)  # a bin may hold examples of every group
        if max(rest) + reserved <= budget:
            bins = pack(rest, ranks, budget - reserved)
            present = [{indices[k] for k in chosen} for chosen in bins]
            read = sum(group.prefix for ids in present for group in groups if not ids.isdisjoint(group.members))
            packings.append((len(bins), sum(rest) + read, prefixes, bins))
    *_, prefixes, bins = min(packings, key=lambda packing: packing[:2])
    return prefixes, bins


def micro_batches(
    examples: Sequence[Example],
    indices: Sequence[int],
    options: TrainerOptions,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device = CPU,
) -> list[MicroBatch]:
    """This rank's micro-batches of the global batch `indices`; an empty bin gets the shortest example as stand-in."""
    if options.share_prefixes and len(examples[indices[0]].completions) == 1:
        prefixes, bins = pack_sharing(examples, indices, ranks, options.tokens_per_microbatch)
    else:
        prefixes = {i: own_prefix(examples[i], options) for i in indices}
        bins = pack([examples[i].tokens(prefixes[i]) for i in indices], ranks, options.tokens_per_microbatch)
    shortest = min(indices, key=lambda i: examples[i].tokens())
    own = ([indices[i] for i in chosen] for chosen in bins[rank::ranks])
    return [lay_out(examples, chosen or [shortest], prefixes, bool(chosen), device) for chosen in own]


def lay_out(
    examples: Sequence[Example],
    indices: Sequence[int],
    prefixes: dict[int, int] | None = None,
    real: bool = True,
    device: torch.device = CPU,
) -> MicroBatch:
    """Pack the examples at `indices`; the first prefixes[i] tokens of example i may be shared."""
    groups = defaultdict[tuple[int, ...], list[int]](list)
    for i in indices:
        groups[tuple(examples[i].prompt[: prefixes[i] if prefixes else 0])].append(i)
    order, ids, positions, lengths, parents = list[int](), list[int](), list[int](), list[int](), list[int]()
    sources, targets, sequences, weights, number = list[int](), list[int](), list[int](), list[float](), 0

    def add_segment(tokens: Sequence[int], position: int, parent: int) -> None:
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        lengths.append(len(tokens))
        parents.append(parent)

    for prefix, members in groups.items():
        readers = sum(len(examples[i].completions) for i in members)
        shared, first, parent = len(prefix) if readers > 1 else 0, len(ids), -1
        if shared:
            parent = len(lengths)
            add_segment(prefix, 0, -1)
        for example in (examples[i] for i in members):
            for completion in example.completions:
                start = len(ids) - shared  # where position 0 would be, if the prefix stood here
                if own := (example.prompt + completion[:-1])[shared:]:
                    add_segment(own, shared, parent)
                # A target is predicted by the token before it, which may lie in the prefix.
                before = range(len(example.prompt) - 1, len(example.prompt) - 1 + len(completion))
                sources += [position + (first if position < shared else start) for position in before]
                targets += completion
                sequences += [number] * len(completion)
                weights += example.token_weights or [1.0] * len(completion)
                number += 1
        order += members

    integers = (order, ids, positions, sources, targets, sequences)
    tensors = [to_device(values, torch.int64, device) for values in integers]
    tensors.append(to_device(weights, torch.float32, device))
    return MicroBatch(order, real, number // len(order), Segments.make(lengths, parents, device), *tensors)
