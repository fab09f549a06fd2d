"""Micro-batches: examples packed flat under a token budget, the same number on every rank.

Where it saves enough, a shared prefix is computed once (`kernels.segments.Segments`): for DPO the prompt of a pair,
for SFT the common beginning of prompts, such as the rubric.

Shapes: t tokens of all segments, n targets (the completions' tokens), e examples, c completions of each example.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dpo.data import Example
from kernels.segments import Segments
from kernels.transfer import to_device
from stages.settings import TrainerOptions

LEAST_SHARED = 16
"""Shortest shared prefix, in tokens: a shorter one costs as much as it saves, since it is one more segment."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences without padding, and the positions that predict the completions' tokens."""

    examples: list[int]
    """Indices into the training examples."""
    real: bool
    """False for a stand-in: a rank without work computes it, so that collectives match. Its loss does not count."""
    segments: Segments
    examples_e: Tensor
    """int64; `examples`, on the device."""
    ids_t: Tensor
    """int64; tokens that the model reads."""
    positions_t: Tensor
    """int64; positions within each sequence."""
    sources_n: Tensor
    """int64; index into t of the token that predicts the target."""
    targets_n: Tensor
    """int64; the completions' tokens."""
    sequences_n: Tensor
    """int64; index into the e * c completions."""
    weights_n: Tensor
    """fp32; weights in the SFT loss."""
    completions: int

    @property
    def tokens(self) -> int:
        return self.segments.borders[-1]

    def sums(self, values_n: Tensor) -> Tensor:
        """Sums over each completion, fp32 [e, c]. `index_put` is deterministic only on CUDA, `index_add` on a CPU."""
        total = values_n.new_zeros(len(self.examples) * self.completions)
        if values_n.is_cuda:
            total = total.index_put((self.sequences_n,), values_n, accumulate=True)
        else:
            total = total.index_add(0, self.sequences_n, values_n)
        return total.view(-1, self.completions)

    def predicting(self, hidden_td: Tensor) -> Tensor:
        """Hidden states that predict a target, [n, d]; the backward is deterministic on CUDA and on a CPU."""
        return hidden_td[self.sources_n] if hidden_td.is_cuda else hidden_td.index_select(0, self.sources_n)


@dataclass(frozen=True)
class Group:
    """Indices of examples whose prompts share their first `prefix` tokens."""

    members: list[int]
    prefix: int


def own_prefix(example: Example, options: TrainerOptions) -> int:
    """Prompt tokens that the completions of one example share."""
    enough = len(example.completions) > 1 and len(example.prompt) >= LEAST_SHARED
    return len(example.prompt) if options.share_prefixes and enough else 0


def keep_usable(
    examples: Iterable[Example], options: TrainerOptions, context: int
) -> tuple[list[Example], dict[str, int]]:
    """The examples that can be trained on, and the numbers of dropped ones by reason. Nothing is truncated."""
    kept, dropped = list[Example](), Counter[str]()
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
    """Groups of SFT examples by common beginnings of their prompts, which save the most tokens.

    A group is a run in the sorted prompts. best[end], the most tokens that the first `end` prompts can save, is the
    maximum over the last run's start of best[start] + (members - 1) * prefix.
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
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pack(costs: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Indices of `costs`, each at most `budget`, in the fewest bins (a multiple of `ranks`) that greedy packing finds.

    The highest cost comes first, and each goes into the emptiest bin, so that bins and ranks are even.
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
    options: TrainerOptions,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | None = None,
) -> list[MicroBatch]:
    """This rank's micro-batches of the global batch `indices`; an empty bin gets the shortest example as stand-in."""
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
    """Shared prompt tokens of each example, bins of positions in the global batch, and the tokens of all bins."""

    prefixes: dict[int, int]
    bins: list[list[int]]
    tokens: int


def _pack_with_common_prefixes(
    examples: Sequence[Example], indices: Sequence[int], ranks: int, budget: int
) -> tuple[dict[int, int], list[list[int]]]:
    """Shared tokens of each SFT example, and the bins.

    Of three groupings (those that save most; one group of all prompts; none) the one with the fewest bins, then tokens.
    """
    prompts = sorted(examples[i].prompt for i in indices)
    everyone = Group(list(indices), _common(prompts[0], prompts[-1]))
    groupings = [common_prefixes(examples, indices), [everyone] if everyone.prefix >= LEAST_SHARED else [], []]
    packings = [_pack_groups(examples, indices, groups, ranks, budget) for groups in groupings]
    best = min((packed for packed in packings if packed), key=lambda packed: (len(packed.bins), packed.tokens))
    return best.prefixes, best.bins


def _pack_groups(
    examples: Sequence[Example], indices: Sequence[int], groups: list[Group], ranks: int, budget: int
) -> _Packed | None:
    """The packing, or None if it does not fit: a bin may hold examples of every group, hence every prefix."""
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
    """Pack the sequences of the examples at `indices`; the first prefixes[i] tokens of example i may be shared."""
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
    """Builds a micro-batch, sequence by sequence.

    The current shared prefix is segment `prefix` (-1: none); its `shared` tokens begin at index `first` of `ids`.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    prefix: int = -1
    shared: int = 0
    first: int = 0

    def begin(self, shared: list[int]) -> None:
        """Set the prefix of the sequences that follow; it may be empty."""
        self.first, self.shared, self.prefix = len(self.ids), len(shared), -1
        if shared:
            self._segment(shared, 0)
            self.prefix = len(self.lengths) - 1

    def add(self, example: Example, completion: list[int], sequence: int) -> None:
        """Add a prompt with one of its completions, without the prefix."""
        start, prompt = len(self.ids), len(example.prompt)
        own = (example.prompt + completion[:-1])[self.shared :]
        if own:
            self._segment(own, self.shared)
        # A target is predicted by the token before it, which may lie in the prefix.
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
