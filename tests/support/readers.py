"""All readers of users' rows, each with rows that it reads; and rows as public sets publish them, of made-up texts."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from questions import ALPACA, ARENA_1, ARENA_2, MT, OUTPUTS, annotation, game, game_2, rated, written

from dpo.data import read_examples
from evaluation import alpaca, arena, ifeval, mtbench
from evaluation.agreement import read_comparisons, report
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, read_answers, read_questions
from evaluation.labelled import read_decisions, read_labelled
from evaluation.verifiable import read_instructions
from judging.pairs import rule_scores
from judging.rubric import judge_prompt
from judging.scores import read_scores
from prepare.eft import read_sources
from prepare.examples import labelled_rows
from stages.command import UserError
from stages.rows import read_prompts
from stages.settings import Eft

CHOICES = {"first": "Lava is melted rock.", "second": "Lava is cold milk."}
LLMBAR = {"input": "What is lava?", "output_1": CHOICES["first"], "output_2": CHOICES["second"], "label": 1}
JUDGEBENCH = {
    "pair_id": "b5ce1305-50fe-5a5e", "original_id": 6603, "source": "mmlu-pro-health", "question": "What is lava?",
    "response_model": "m", "response_A": CHOICES["first"], "response_B": CHOICES["second"], "label": "A>B",
}  # fmt: skip
PANDALM = {
    "idx": 0, "motivation_app": "Search", "cmp_key": "a_b", "instruction": "Explain it.", "input": "Lava",
    "response1": CHOICES["first"], "response2": CHOICES["second"], "annotator1": 1, "annotator2": 1, "annotator3": 1,
}  # fmt: skip
AUTO_J = {
    "scenario": "explaining_general", "label": 0, "prompt": "What is lava?",
    "response 1": CHOICES["first"], "response 2": CHOICES["second"],
}  # fmt: skip
ALPACA_PAIR = {
    "instruction": "What is lava?", "output_1": CHOICES["first"], "output_2": CHOICES["second"],
    "preference": 1, "annotator_index": 15, "dataset": "helpful_base", "datasplit": "eval",
}  # fmt: skip
BIG_BENCH = {"input": "What is lava?", "target_scores": {CHOICES["first"]: 1, CHOICES["second"]: 0}}
HHH = {"input": "What is lava?", "targets": {"choices": list(CHOICES.values()), "labels": [1, 0]}}


def message(name: str, role: str, *replies: dict, **more) -> dict:
    row = {"message_id": name, "text": f"text of {name}", "role": role, "lang": "en", "review_result": True}
    return row | {"deleted": False, "synthetic": False, "replies": list(replies)} | more


JUDGMENTS = [{"score": s, "justification": "x"} for s in (1, 4.5)]
COMPARED = {"prompt": "q", "response": "r", "judgments": JUDGMENTS, "winner": "second", "score": 5}
RESPONSE = {"text": "r", "score": 2, "flaw": "", "evidence": {"asked": "a", "given": "g", "missing": ""}}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
TREE = {"message_tree_id": "a", "tree_state": "ready_for_export"}
TREE["prompt"] = message("a", "prompter", *(message(f"a{rank}", "assistant", rank=rank) for rank in range(2)))
RANKED = {"message_id": "m", "context": [{"role": "prompter", "text": "q"}]}
RANKED["replies"] = [{"rank": rank, "text": f"reply {rank}"} for rank in range(2)]
GROUP = {"id": "g", "prompt": TALK, "responses": [RESPONSE, RESPONSE | {"score": 3}], "subset": "s"}
PAIR = {"id": "a", "prompt": "q", "output_1": "x", "output_2": "y", "label": 1, "annotator": "b"}
IFEVAL = {"key": 7, "prompt": "p", "kwargs": [{"num_words": 3, "relation": "at least"}]}
IFEVAL["instruction_id_list"] = ["length_constraints:number_words"]
TEXTS = [{"id": "a/r0", "prompt_id": "a", "text": "one"}]


def decisions(path: Path) -> None:
    labelled = read_labelled(written(path.parent / "cases.jsonl", [GROUP | {"prompt": "q"}]))
    report(labelled, read_decisions(path, labelled))


def games(path: Path) -> None:
    boards = arena.read_judgments([path])
    with suppress(UserError):  # no verdict counts
        arena.report(boards)


def labelled_file(path: Path) -> None:
    for case in read_labelled(path).cases:
        judge_prompt(case.prompt, case.text, "full", "last")


def answers_of(benchmark: str, questions: list[dict], name: str) -> Callable[[Path], object]:
    return lambda path: read_answers(
        benchmark, path, read_questions(benchmark, written(path.parent / f"questions{name}", questions))
    )


READERS: dict[str, tuple[Callable[[Path], object], list[dict]]] = {
    **{
        f"labelled {i}": (labelled_file, [row]) for i, row in enumerate((PAIR, GROUP, RANKED, TREE, LLMBAR, JUDGEBENCH))
    },
    **{f"labelled {i + 6}": (labelled_file, [row]) for i, row in enumerate((PANDALM, AUTO_J, BIG_BENCH, HHH))},
    "scores": (decisions, [{"id": f"g/{i}", "index": 0, "score": i} for i in range(2)]),
    "comparisons": (decisions, [{"id": "g/0-1", "order": i, "winner": "tie"} for i in range(2)]),
    "meta-judge's cases": (read_comparisons, [COMPARED]),
    "prompts": (read_prompts, [{"id": "a", "prompt": TALK}, {"id": "b", "prompt": "q"}]),
    "instructions": (read_instructions, [{"id": "a", "prompt": "q", "rules": [{"rule": "bullets", "count": 2}]}]),
    "ruled prompts": (
        lambda path: rule_scores(path, TEXTS),
        [{"id": "a", "prompt": "q", "rules": [{"rule": "contains", "words": ["x"]}]}],
    ),
    "scores of responses": (lambda path: read_scores(path, TEXTS), [{"id": "a/r0", "score": 1.5, "text": "one"}]),
    "judged": (
        lambda path: list(labelled_rows(path)),
        [
            {"kind": "judge", "prompt": "q", "response": "r", "score": 3, "justification": "j"},
            {"kind": "metajudge"} | COMPARED,
            {"kind": "respond", "prompt": TALK, "response": "r", "finished": True},
            {"prompt": "q", "responses": [RESPONSE]},
        ],
    ),
    "rankings": (lambda path: read_sources(Eft(sources=[str(path)])), [TREE, RANKED]),
    "pairs": (
        lambda path: read_examples([path], "dpo", 9),
        [{"id": "a", "prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 4]}],
    ),
    "lessons": (
        lambda path: read_examples([path], "sft", 9),
        [{"id": "a", "prompt_ids": [1], "completion_ids": [2], "token_weights": [1.5]}],
    ),
    "annotations": (
        lambda path: alpaca.annotated(alpaca.read_annotations(path), None),
        [annotation(i, 1, index=i) for i in range(2)],
    ),
    "games of v0.1": (games, [game("q", "A>B", "B>A")]),
    "games of v2.0": (games, [game_2("q", "A>B", "B>A")]),
    "ratings": (
        lambda path: mtbench.read_scores(path, read_questions(MT_BENCH, written(path.parent / "q.jsonl", MT[:1]))),
        [rated(81, 1, 5, scale=[0, 9]), rated(81, 2, 5, scale=[0, 9])],
    ),
    "AlpacaEval's questions": (lambda path: read_questions(ALPACA_EVAL, path), ALPACA[:1]),
    "AlpacaEval's answers": (answers_of(ALPACA_EVAL, ALPACA[2:], ".json"), OUTPUTS[:1]),
    "Arena-Hard's questions": (lambda path: read_questions(ARENA_HARD, path), [*ARENA_1[:1], *ARENA_2[:1]]),
    "MT-Bench's questions": (lambda path: read_questions(MT_BENCH, path), MT[:1]),
    "IFEval's prompts": (ifeval.read_prompts, [IFEVAL]),
    "IFEval's answers": (
        lambda path: ifeval.read_answers(path, [ifeval.Prompt("7", "p", ())]),
        [{"key": 7, "text": "t"}],
    ),
}
