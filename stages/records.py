"""The records of a run: one definition for each kind of row in the JSON-lines files of runs/NAME/iter<t>/.

Ids are readable: prompt "t0007", response "t0007/r2", judgment "t0007/r2/j0", comparison "t0007/r2/m0-3", pairs
"actor/t0007" and "judge/t0007/r2". Code reads the fields that name other records, and never takes an id apart.
"""

from typing import Any, Literal, TypedDict

Record = dict[str, Any]  # a row of a JSON-lines file
Message = dict[str, str]  # {"role": ..., "content": ...}
Prompt = str | list[Message]  # the user's text, or a conversation: stages/rows.py


class Sampled(TypedDict):  # a completion that a model has sampled
    id: str
    prompt_id: str
    ids: list[int]  # the sampled token ids, the stop token included where there is one
    text: str  # the ids as text, without special tokens
    finish_reason: Literal["stop", "length", "too_long"]
    logprob: float  # log-probability of the ids at the sampling temperature, before top-p
    seed: int  # seed of the noise: `stages.seeds.request_seed`


class Response(Sampled):  # responses/shards-*/*.jsonl: one of the K answers to a prompt
    sample: int  # 0 to K - 1
    prompt: Prompt


class Judgment(Sampled):  # judgments/shards-*/*.jsonl: one of the N judgments of a response
    response_id: str
    index: int  # 0 to N - 1
    score: int | float | None  # in [0, 5], as the text states it
    failure: str | None  # why there is no score: a `judging.verdict.Failure`


class ExpectedScore(TypedDict):  # scores/shards-*/*.jsonl: the mean of the judge's distribution over a score
    id: str
    response_id: str
    prompt_id: str
    index: int  # index of the judgment; 0 where the score stands first
    finish_reason: str
    probabilities: list[float]  # probabilities of the digits 0 to 5
    score: float | None
    variance: float | None
    failure: str | None  # "low_mass": the digits have too little of the distribution; or the finish reason


class Comparison(Sampled):  # comparisons/shards-*/*.jsonl: a verdict of the meta-judge on two judgments of a response
    response_id: str
    first: int  # index of the judgment shown first, as A
    second: int
    winner: Literal["first", "second", "tie"] | None
    failure: str | None  # why there is no winner: a `judging.verdict.Failure`


class MetaJudged(TypedDict):  # comparisons/meta_judged.jsonl: which of a prompt's responses is meta-judged
    prompt_id: str
    response_id: str | None
    judgments: list[int]  # indices of the judgments that are compared: distinct ones with a score
    reason: str | None  # why nothing is compared: a `judging.scores.Reason`


class Preference(TypedDict):  # a pair in TRL's conversational format, with the token ids that were sampled
    id: str
    kind: Literal["actor", "judge"]
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_id: str  # id of the chosen response or judgment
    rejected_id: str


def preference(prompt_id: str, prompt: list[Message], prompt_ids: list[int], chosen: Any, rejected: Any) -> Record:
    """The fields of a preference behind its kind, from the records of two responses, or judgments, to one prompt."""
    row: Record = {"prompt_id": prompt_id, "prompt": prompt}
    sides = (("chosen", chosen), ("rejected", rejected))
    row |= {side: [{"role": "assistant", "content": own["text"]}] for side, own in sides}
    row |= {"prompt_ids": prompt_ids} | {f"{side}_ids": list(own["ids"]) for side, own in sides}
    return row | {f"{side}_id": own["id"] for side, own in sides}


class ActorPair(Preference):  # pairs/actor.jsonl: which response to a prompt is better
    chosen_score: int | float  # mean score: `judging.scores.to_number`
    rejected_score: int | float


class JudgePair(Preference):  # pairs/judge.jsonl: which judgment of a response is better
    response_id: str
    chosen_elo: float  # in natural-log units
    rejected_elo: float


class EloScore(TypedDict):  # pairs/elo.jsonl: the Elo score of a judgment that was compared
    judgment_id: str
    response_id: str
    prompt_id: str
    group: int  # only judgments of one group were compared with one another
    elo: float
    standard_error: float
    won: int
    lost: int


class MissingPair(TypedDict):  # pairs/none.jsonl: why a prompt gave no pair of a kind
    prompt_id: str
    kind: Literal["actor", "judge"]
    reason: str  # a `judging.scores.Reason`


def group_by(records: Any, key: str) -> dict[str, list[Any]]:
    """Records by the value of a field, in order of appearance."""
    groups: dict[str, list[Any]] = {}
    for row in records:
        groups.setdefault(row[key], []).append(row)
    return groups
