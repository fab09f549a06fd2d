"""Micro-batches: examples packed flat under a token budget, the same number of them on every rank.

What sequences of a micro-batch begin with is computed once, where that saves enough: for DPO a pair's prompt, for SFT
what prompts have in common, such as the rubric. All of them see it (`kernels.attention.Segments`).

Shapes: t tokens of all segments, n targets (the completions' tokens), e examples, c completions of each.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dpo.data import Example
from kernels.attention import Segments
from kernels.transfer import to_device
from stages.settings import Trainer

LEAST_SHARED = 16
"""Tokens that a shared prefix has at least: below, a further segment costs as much as it saves."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, and where in them the completions' tokens are predicted. No padding."""

    examples: list[int]
    """Each example's index among those that training was given."""
    real: bool
    """False for the stand-in that a rank without work computes, so that collectives match; its loss is left out."""
    segments: Segments
    examples_e: Tensor
    """int64; `examples`, on the device."""
    ids_t: Tensor
    """int64; what the model reads."""
    positions_t: Tensor
    """int64; counted from each sequence's start."""
    sources_n: Tensor
    """int64; which of t predicts the target."""
    targets_n: Tensor
    """int64; the completions' tokens."""
    sequences_n: Tensor
    """int64; which of the e * c completions the target belongs to."""
    weights_n: Tensor
    """fp32; the target's weight in SFT's loss."""
    completions: int
    """c."""

    @property
    def tokens(self) -> int:
        return self.segments.borders[-1]

    def sums(self, values_n: Tensor) -> Tensor:
        """Sums of the targets' values over each completion, fp32 [e, c]; the same bits every time.

        Of the two operations that add by index, one is deterministic on CUDA, the other on a CPU.
        """
        total = values_n.new_zeros(len(self.examples) * self.completions)
        if values_n.is_cuda:
            total = total.index_put((self.sequences_n,), values_n, accumulate=True)
        else:
            total = total.index_add(0, self.sequences_n, values_n)
        return total.view(-1, self.completions)

    def predicting(self, hidden_td: Tensor) -> Tensor:
        """The hidden states that predict a target, [n, d]; in backward, too, the same bits every time (as above)."""
        return hidden_td[self.sources_n] if hidden_td.is_cuda else hidden_td.index_select(0, self.sources_n)


@dataclass(frozen=True)
class Group:
    """Examples, by index, whose prompts begin with the same `prefix` tokens, which are computed once."""

    members: list[int]
    prefix: int


def own_prefix(example: Example, options: Trainer) -> int:
    """Tokens of its prompt that an example's own completions share."""
    enough = len(example.completions) > 1 and len(example.prompt) >= LEAST_SHARED
    return len(example.prompt) if options.share_prefixes and enough else 0


def keep_usable(examples: Iterable[Example], options: Trainer, context: int) -> tuple[list[Example], dict[str, int]]:
    """The examples that can be trained on, and how many were dropped, by reason. Nothing is truncated."""
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        if not example.prompt or not all(example.completions):
            dropped["dropped.empty"] += 1
        elif len(example.completions) == 2 and example.completions[0] == example.completions[1]:
            dropped["dropped.identical"] += 1
        elif example.longest > context:
            dropped["dropped.over_context"] += 1
        elif example.tokens(own_prefix(example, options)) > options.tokens_per_microbatch:
            dropped["dropped.over_token_budget"] += 1
        else:
            kept.append(example)
    return kept, dict(dropped)


def common_prefixes(examples: Sequence[Example], indices: Sequence[int]) -> list[Group]:
    """SFT examples by what their prompts begin with: the groups that save the most tokens.

    In the order of their prompts, groups are runs. best[end], the most tokens that the first `end` examples can save,
    is best[start] + (members - 1) * prefix for the last run's start.
    """
    order = sorted(indices, key=lambda i: examples[i].prompt)
    prompts = [examples[i].prompt for i in order]
    common = [_common(a, b) for a, b in pairwise(prompts)]
    best, last = [0], [(0, 0)]
    for end in range(1, len(order) + 1):
        best.append(best[-1])
        last.append((end - 1, 0))
        prefix = len(prompts[end - 1])
        for start in range(end - 2, -1, -1):
            prefix = min(prefix, common[start])
            if prefix < LEAST_SHARED:
                break
            saved = best[start] + (end - start - 1) * prefix
            if saved > best[end]:
                best[end], last[end] = saved, (start, prefix)
    groups, end = [], len(order)
    while end:
        start, prefix = last[end]
        if prefix:
            groups.append(Group(order[start:end], prefix))
        end = start
    return groups


def _common(a: list[int], b: list[int]) -> int:
    """Tokens that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pack(costs: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Indices of `costs` in ranks * m bins of at most `budget`, m as small as greedy packing finds.

    Longest first, each into the bin with the least in it, so that bins are even, and with them the ranks. No cost may
    exceed the budget.
    """
    assert max(costs, default=0) <= budget
    count = ranks * max(1, -(-sum(costs) // max(1, budget * ranks)))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, i) for i in range(count)]
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            load, least = loads[0]
            if load + costs[index] > budget:
                break
            heapq.heapreplace(loads, (load + costs[index], least))
            bins[least].append(index)
        else:
            return bins
        count += ranks


def micro_batches(
    examples: Sequence[Example],
    indices: Sequence[int],
    options: Trainer,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | None = None,
) -> list[MicroBatch]:
    """This rank's micro-batches of the global batch `indices`; every rank has the same number of them.

    Where there are fewer examples than bins, a rank gets the batch's shortest example as a stand-in.
    """
    if options.share_prefixes and len(examples[indices[0]].completions) == 1:
        prefixes, bins = _pack_with_common_prefixes(examples, indices, ranks, options.tokens_per_microbatch)
    else:
        prefixes = {i: own_prefix(examples[i], options) for i in indices}
        bins = pack([examples[i].tokens(prefixes[i]) for i in indices], ranks, options.tokens_per_microbatch)
    shortest = min(indices, key=lambda i: examples[i].tokens())
    own = ([indices[i] for i in chosen] for chosen in bins[rank::ranks])
    return [lay_out(examples, chosen or [shortest], prefixes, bool(chosen), device) for chosen in own]


@dataclass(frozen=True)
class _Packed:
    prefixes: dict[int, int]
    """Tokens of each example's prompt that it shares."""
    bins: list[list[int]]
    """Positions in the global batch."""
    tokens: int


def _pack_with_common_prefixes(
    examples: Sequence[Example], indices: Sequence[int], ranks: int, budget: int
) -> tuple[dict[int, int], list[list[int]]]:
    """Each SFT example's shared tokens, and the bins: the way to share that needs the fewest bins, then tokens.

    The ways: the groups that save most; what all prompts have in common; nothing.
    """
    prompts = sorted(examples[i].prompt for i in indices)
    everyone = Group(list(indices), _common(prompts[0], prompts[-1]))
    ways = [common_prefixes(examples, indices), [everyone] if everyone.prefix >= LEAST_SHARED else [], []]
    found = [_pack_groups(examples, indices, groups, ranks, budget) for groups in ways]
    best = min((packed for packed in found if packed), key=lambda packed: (len(packed.bins), packed.tokens))
    return best.prefixes, best.bins


def _pack_groups(
    examples: Sequence[Example], indices: Sequence[int], groups: list[Group], ranks: int, budget: int
) -> _Packed | None:
    """Packed; None if it does not fit: a bin may have examples of every group, and so each group's prefix once."""
    prefixes = dict.fromkeys(indices, 0) | {i: group.prefix for group in groups for i in group.members}
    rest = [examples[i].tokens() - prefixes[i] for i in indices]
    reserved = sum(group.prefix for group in groups)
    if max(rest) + reserved > budget:
        return None
    bins = pack(rest, ranks, budget - reserved)
    present = [{indices[k] for k in chosen} for chosen in bins]
    read = sum(group.prefix for ids in present for group in groups if not ids.isdisjoint(group.members))
    return _Packed(prefixes, bins, sum(rest) + read)


def lay_out(
    examples: Sequence[Example],
    indices: Sequence[int],
    prefixes: dict[int, int] | None = None,
    real: bool = True,
    device: torch.device | None = None,
) -> MicroBatch:
    """Pack the sequences of the examples at `indices`; the first prefixes[i] tokens of example i may be shared.

    This is the one place that knows how an example's sequences lie in memory.
    """
    layout, order = _Layout(), []
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in indices:
        groups[tuple(examples[i].prompt[: prefixes[i] if prefixes else 0])].append(i)
    for shared, members in groups.items():
        readers = sum(len(examples[i].completions) for i in members)
        layout.begin(list(shared) if readers > 1 else [])
        for i in members:
            order.append(i)
            for number, completion in enumerate(examples[i].completions):
                layout.add(examples[i], completion, len(examples[i].completions) * (len(order) - 1) + number)
    return layout.micro_batch(order, real, len(examples[indices[0]].completions), device or torch.device("cpu"))


@dataclass
class _Layout:
    """A micro-batch under way."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    prefix: int = -1
    """The segment that the next sequences continue, or -1."""
    shared: int = 0
    """Its tokens."""
    first: int = 0
    """Where it begins."""

    def begin(self, shared: list[int]) -> None:
        """A prefix for the sequences that follow; none if it is empty."""
        self.first, self.shared, self.prefix = len(self.ids), len(shared), -1
        if shared:
            self._segment(shared, 0)
            self.prefix = len(self.lengths) - 1

    def add(self, example: Example, completion: list[int], sequence: int) -> None:
        """A prompt with one of its completions, but for the prefix."""
        start, prompt = len(self.ids), len(example.prompt)
        own = (example.prompt + completion[:-1])[self.shared :]
        if own:
            self._segment(own, self.shared)
        # The token before predicts; the prompt's last one may be the prefix's.
        for position in range(prompt - 1, prompt - 1 + len(completion)):
            inside = position < self.shared
            self.sources.append(self.first + position if inside else start + position - self.shared)
        self.targets += completion
        self.sequences += [sequence] * len(completion)
        self.weights += example.token_weights or [1.0] * len(completion)

    def _segment(self, ids: list[int], position: int) -> None:
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.lengths.append(len(ids))
        self.prefixes.append(self.prefix)

    def micro_batch(self, examples: list[int], real: bool, completions: int, device: torch.device) -> MicroBatch:
        def integers(values: list[int]) -> Tensor:
            return to_device(values, torch.int64, device)

        return MicroBatch(
            examples=examples,
            real=real,
            segments=Segments.make(self.lengths, self.prefixes, device),
            examples_e=integers(examples),
            ids_t=integers(self.ids),
            positions_t=integers(self.positions),
            sources_n=integers(self.sources),
            targets_n=integers(self.targets),
            sequences_n=integers(self.sequences),
            weights_n=to_device(self.weights, torch.float32, device),
            completions=completions,
        )
