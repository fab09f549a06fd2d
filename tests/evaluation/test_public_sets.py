"""Labelled rows as public sets publish them, straight into `evaluation.agreement`. The texts are made up."""

import json
import re
from pathlib import Path

import pytest
from questions import refused, written
from readers import ALPACA_PAIR, AUTO_J, BIG_BENCH, CHOICES, HHH, JUDGEBENCH, LLMBAR, PANDALM, message

from evaluation.agreement import main
from evaluation.labelled import Labelled, read_labelled
from stages.files import write_jsonl


@pytest.fixture
def read(tmp_path):
    def read(content, name: str = "cases.json") -> Labelled:
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return read_labelled(path)

    return read


@pytest.mark.parametrize(
    ("published", "prompt", "subset"),
    [
        ([LLMBAR], "What is lava?", ""),
        ([PANDALM], "Explain it.\n\nLava", ""),
        ([ALPACA_PAIR], "What is lava?", "helpful_base"),
        (JUDGEBENCH, "What is lava?", "mmlu-pro-health"),
        (AUTO_J, "What is lava?", "explaining_general"),
        ({"name": "hhh_alignment", "metrics": ["m"], "examples": [BIG_BENCH]}, "What is lava?", ""),
        (HHH, "What is lava?", ""),
    ],
)
def test_a_row_of_each_set_says_what_is_asked_answered_and_better(read, published, prompt, subset):
    """Some are one JSON document, others lines."""
    one_file = isinstance(published, list) or "examples" in published
    [pair] = read(published, "cases.json" if one_file else "cases.jsonl").pairs
    assert (pair.first.prompt, pair.first.subset, pair.label) == (prompt, subset, "first")
    assert [pair.first.text, pair.second.text] == list(CHOICES.values())


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        (LLMBAR, {1: "first", 2: "second"}),
        (JUDGEBENCH, {"A>B": "first", "B>A": "second", "A=B": "tie", True: "first", False: "second"}),
        (AUTO_J, {0: "first", 1: "second", 2: "tie"}),
    ],
)
def test_labels_mean_what_their_set_says(read, row, labels):
    for value, meaning in labels.items():
        assert read([row | {"label": value}]).pairs[0].label == meaning
    for value in (3, "C>D", None, "", [1]):
        with refused(re.escape(f"entry 0: label is {value!r}; it must be 1, 2 or")):
            read([row | {"label": value}])


def test_each_of_three_annotators_has_a_label_and_0_is_a_tie(read):
    [pair] = read([PANDALM | {"annotator2": 0, "annotator3": 2}]).pairs
    assert dict(pair.labels) == {"annotator1": "first", "annotator2": "tie", "annotator3": "second"}
    assert pair.label == "tie"


def test_rows_with_equal_texts_are_pairs_of_their_own(read):
    """99 rows of PandaLM's test set differ from another only in "idx" and the models; LLMBar's rows have no id."""
    pairs = read([PANDALM, PANDALM | {"idx": 7, "cmp_key": "a_c", "annotator1": 2, "annotator2": 2}]).pairs
    assert [(pair.name, pair.label) for pair in pairs] == [("0", "first"), ("7", "second")]
    named = [{"id": i, "annotator": 4} | ALPACA_PAIR for i in (1, 2)]
    assert [pair.name for pair in read(named).pairs] == ["1", "2"]
    assert [pair.name for pair in read([LLMBAR, LLMBAR, AUTO_J]).pairs] == ["00000", "00001", "00002"]


def test_without_an_id_annotators_share_a_pair(read):
    """AlpacaEval's human annotations: rows with equal texts, told apart by "annotator_index"."""
    rows = [ALPACA_PAIR | {"annotator_index": i, "preference": p} for i, p in enumerate((1, 2, 2, 0))]
    [pair] = read(rows).pairs
    assert dict(pair.labels) == {"0": "first", "1": "second", "2": "second", "3": "tie"} and pair.label == "second"
    with refused("entry 1: the pair of 'What is lava"):
        read([ALPACA_PAIR, ALPACA_PAIR])


def test_an_input_that_is_not_there_adds_nothing(read):
    """PandaLM's file has NaN there, which json writes as it stands."""
    for nothing in (float("nan"), "", None):
        assert read([PANDALM | {"input": nothing}]).cases[0].prompt == "Explain it."
    with refused("entry 0: input is 7; it must be a text"):
        read([PANDALM | {"input": 7}])


def test_message_trees_are_read_as_they_stand(read):
    """Every question of a conversation, in any language, has a group; what is left out is counted."""
    further = message("c", "prompter", *(message(f"c{i}", "assistant", rank=i) for i in range(2)), lang="de")
    replies = [message("b0", "assistant", further, rank=0), message("b1", "assistant", rank=1)]
    replies += [message("b2", "assistant", rank=2, deleted=True), message("b3", "assistant", rank=None)]
    tree = {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": message("a", "prompter", *replies)}
    labelled = read(tree, "trees.jsonl")
    assert [(pair.name, pair.label) for pair in labelled.pairs] == [("a/0-1", "first"), ("c/0-1", "first")]
    assert labelled.cases[2].prompt.endswith("User:\ntext of a\n\nAssistant:\ntext of b0\n\nUser:\ntext of c")
    assert labelled.left_out == {"deleted": 1, "unranked": 1}


@pytest.mark.parametrize("published", [BIG_BENCH | {"target_scores": 7}, HHH | {"targets": {"choices": ["a"]}}])
def test_a_choice_without_a_score_is_refused(read, published):
    with refused(r"line 1: targets?(_scores)? must have a score of each response"):
        read(published, "cases.jsonl")


def decided(folder: Path, cases: list[dict], rows: list[dict], call) -> tuple[dict, str]:
    """The report and the table of the command on cases and verdicts."""
    write_jsonl(folder / "decisions.jsonl", rows)
    words = ("--cases", written(folder / "cases.json", cases), "--decisions", folder / "decisions.jsonl")
    out = call(main, *words, "--out", folder / "out").out
    return json.loads((folder / "out" / "agreement.json").read_text()), out


def test_equal_texts_are_never_consistent(tmp_path, call):
    """Whatever was said of them: the one pair with different texts is consistent, and counts alone."""
    twins = [LLMBAR | {"output_1": "Same.", "output_2": "Same.", "label": 1.5}] * 3
    said = [("first", "second"), ("first", "second"), ("first", "first"), (None, None)]
    rows = [{"id": f"{i:05}", "order": k, "winner": w} for i, both in enumerate(said) for k, w in enumerate(both)]
    report, _ = decided(tmp_path, [LLMBAR, *twins], rows, call)
    assert (report["consistency"]["value"], report["consistency"]["count"]) == (1.0, 1)
    assert report["first_position"]["count"] == 6  # what was said still says whether the first place wins
    report, _ = decided(tmp_path, twins, [row for row in rows if row["id"] < "00003"], call)
    assert (report["consistency"]["value"], report["consistency"]["count"]) == (None, 0)


def test_qualities_are_sorted_as_numbers_and_long_subsets_have_room(tmp_path, call):
    responses = [{"text": f"text {score}", "score": score} for score in (10, 9, 2, -1.5)]
    subset = "a subset whose name is much longer than its column"
    rows = [{"id": f"g/{i}", "score": 5 - i} for i in range(4)]
    group = {"id": "g", "prompt": "q", "responses": responses, "subset": subset}
    report, table = decided(tmp_path, [group], rows, call)
    assert list(report["mean_score_by_quality"]) == ["-1.5", "2", "9", "10"]
    assert "mean score by quality: -1.5: 2.00, 2: 3.00, 9: 4.00, 10: 5.00" in table
    heads = [line for line in table.splitlines() if "longer wins" in line]
    assert f"{subset}, 6 pairs  judge" in table and len({line.index("judge") for line in heads}) == 1 == len(heads) - 1
