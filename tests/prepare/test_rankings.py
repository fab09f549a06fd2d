"""Human rankings: trees and groups worked by hand, every reason for leaving something out, and mistakes in files."""

import gzip
from collections import Counter
from pathlib import Path

import pytest

from evaluation.labelled import read_labelled
from prepare.rankings import LeftOut, RankedGroup, Reply, conversation_text, ranked_groups
from stages.files import UserError, write_jsonl
from stages.settings import Eft

EFT = Eft(max_turns=2)


def message(name: str, role: str, *replies: dict, **fields) -> dict:
    known = {"message_id": name, "text": f"text of {name}", "role": role, "lang": "en", "review_count": 3}
    known |= {"review_result": True, "deleted": False, "synthetic": False, "model_name": None, "replies": list(replies)}
    return known | fields


def ask(name: str, *replies: dict, **fields) -> dict:
    return message(name, "prompter", *replies, **fields)


def answer(name: str, rank: int | None, *replies: dict, **fields) -> dict:
    return message(name, "assistant", *replies, **{"rank": rank} | fields)


def tree(root: dict, **fields) -> dict:
    return {"message_tree_id": root["message_id"], "tree_state": "ready_for_export", "prompt": root} | fields


def two(name: str, **fields) -> list[dict]:
    """Two ranked replies, the worse one first."""
    return [answer(f"{name}1", 1, **fields), answer(f"{name}0", 0, **fields)]


def group(name: str, ranks: list[int], context: list[tuple[str, str]] | None = None, **fields) -> dict:
    turns = [{"role": role, "text": text} for role, text in context or [("prompter", f"text of {name}")]]
    replies = [{"rank": rank, "text": f"reply {i}", **fields} for i, rank in enumerate(ranks)]
    return {"message_id": name, "context": turns, "replies": replies}


def read(tmp_path: Path, *rows: dict, eft: Eft = EFT) -> tuple[list[RankedGroup], Counter]:
    write_jsonl(tmp_path / "source.jsonl", rows)
    return ranked_groups(tmp_path / "source.jsonl", eft)


def test_every_question_of_a_tree_is_a_group_with_the_conversation_above_it(tmp_path):
    deep = ask("q3", *two("e"))
    further = ask("q2", answer("c", 1), answer("d", 0, deep))
    groups, reasons = read(
        tmp_path, tree(ask("q1", answer("a", 0, further), answer("b", 1, ask("q4")), answer("x", 2)))
    )
    first, second = groups
    assert first == RankedGroup(
        id="q1",
        tree="q1",
        context=({"role": "prompter", "text": "text of q1"},),
        replies=(Reply("text of a", 0), Reply("text of b", 1), Reply("text of x", 2)),
    )
    assert (second.id, second.tree) == ("q2", "q1")
    assert second.replies == (Reply("text of c", 1), Reply("text of d", 0))
    assert [turn["text"] for turn in second.context] == ["text of q1", "text of a", "text of q2"]
    assert reasons == {LeftOut.TOO_MANY_TURNS: 1, LeftOut.TOO_FEW_REPLIES: 1}  # q3; q4, where nobody answered


def test_a_prompt_is_the_question_or_a_conversation_with_roles():
    turns = [{"role": "prompter", "text": "Why {x}?"}]
    assert conversation_text(turns) == "Why {x}?"
    turns += [{"role": "assistant", "text": "Since %s."}, {"role": "prompter", "text": "And?"}]
    head = "The response continues this conversation.\n\n"
    assert conversation_text(turns) == head + "User:\nWhy {x}?\n\nAssistant:\nSince %s.\n\nUser:\nAnd?"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"deleted": True}, LeftOut.DELETED),
        ({"review_result": False}, LeftOut.UNREVIEWED),
        ({"review_result": None}, LeftOut.UNREVIEWED),
        ({"lang": "de"}, LeftOut.LANGUAGE),
        ({"lang": None}, LeftOut.LANGUAGE),
        ({"synthetic": True}, LeftOut.SYNTHETIC),
        ({"text": " \n"}, LeftOut.EMPTY),
    ],
)
def test_a_message_left_out_takes_what_is_below_with_it(tmp_path, fields, reason):
    """As a root, as a reply, and as a question further down: counted once, nothing below counted or kept."""
    below = ask("q2", *two("c"))
    assert read(tmp_path, tree(ask("q1", *two("a"), **fields))) == ([], {reason: 1})
    groups, reasons = read(tmp_path, tree(ask("q1", answer("x", 2, below, **fields), *two("a"))))
    assert [g.id for g in groups] == ["q1"] and reasons == {reason: 1}
    assert [reply.text for reply in groups[0].replies] == ["text of a1", "text of a0"]
    further = ask("q2", answer("y", 0, ask("q3", *two("d"))), answer("z", 1), **fields)
    groups, reasons = read(tmp_path, tree(ask("q1", answer("a", 0, further), answer("b", 1))), eft=Eft(max_turns=9))
    assert [g.id for g in groups] == ["q1"] and reasons == {reason: 1}


def test_keys_that_are_missing_say_nothing(tmp_path):
    """Exports leave out what is null."""
    bare = [{"message_id": f"r{rank}", "role": "assistant", "text": f"r{rank}", "rank": rank} for rank in (0, 1)]
    root = {"message_id": "q", "role": "prompter", "text": "?", "replies": bare}
    groups, reasons = read(tmp_path, {"message_tree_id": "q", "prompt": root})
    assert [g.id for g in groups] == ["q"] and not reasons


def test_what_is_wrong_with_trees_replies_and_groups(tmp_path):
    found = {
        LeftOut.TREE_STATE: tree(ask("a", *two("x")), tree_state="growing"),
        LeftOut.TOO_FEW_REPLIES: tree(ask("c", answer("x", 0))),
        LeftOut.EQUAL_RANKS: tree(ask("d", answer("x", 1), answer("y", 1))),
        LeftOut.TOO_MANY_TURNS: group("e", [0, 1], [("prompter", "1"), ("assistant", "2"), ("prompter", "3")]),
    }
    for reason, row in found.items():
        assert read(tmp_path, row, eft=Eft(max_turns=1)) == ([], {reason: 1})
    groups, reasons = read(tmp_path, tree(ask("b", answer("x", None, ask("q2", *two("y"))), *two("z"))))
    assert [(g.id, len(g.replies)) for g in groups] == [("b", 2), ("q2", 2)]  # an unranked reply may be talked about
    assert reasons == {LeftOut.UNRANKED: 1}
    twice = [answer("x", 2), answer("y", 0, text="text of x"), answer("z", 1)]
    groups, reasons = read(tmp_path, tree(ask("b", *twice)))
    assert groups[0].replies == (Reply("text of x", 2), Reply("text of z", 1)) and reasons == {LeftOut.DUPLICATE: 1}
    assert read(tmp_path, tree(ask("b", *twice[:2])))[1] == {LeftOut.DUPLICATE: 1, LeftOut.TOO_FEW_REPLIES: 1}


def test_groups_by_themselves(tmp_path):
    talk = [("prompter", "1"), ("assistant", "2"), ("prompter", "3")]
    rows = [group("g", [0, 2, 2], synthetic=True, model_name="m"), group("h", [1, 0], talk)]
    groups, reasons = read(tmp_path, *rows)
    assert [(g.id, g.tree, [r.rank for r in g.replies]) for g in groups] == [("g", "g", [0, 2, 2]), ("h", "h", [1, 0])]
    assert [turn["role"] for turn in groups[1].context] == ["prompter", "assistant", "prompter"] and not reasons
    assert read(tmp_path, group("g", [0, 1], deleted=True))[1] == {LeftOut.DELETED: 2, LeftOut.TOO_FEW_REPLIES: 1}
    for place in range(3):
        row = group("h", [1, 0], talk)
        row["context"][place]["lang"] = "fr"
        assert read(tmp_path, row) == ([], {LeftOut.LANGUAGE: 1})
        assert len(read(tmp_path, row, eft=Eft(max_turns=2, languages=["fr"]))[0]) == 1


def test_a_group_written_is_read_again_here_and_by_the_agreement(tmp_path):
    talk = [("prompter", "1"), ("assistant", "2"), ("prompter", "3")]
    groups, _ = read(tmp_path, tree(ask("q", *two("a"))), group("h", [1, 0, 1], talk))
    write_jsonl(tmp_path / "held_out.jsonl", (g.row() for g in groups))
    assert ranked_groups(tmp_path / "held_out.jsonl", EFT) == (groups, {})
    cases = read_labelled(tmp_path / "held_out.jsonl").cases
    assert [(case.group, case.text, case.quality) for case in cases] == [
        (g.id, reply.text, -reply.rank) for g in groups for reply in g.replies
    ]
    assert {case.prompt for case in cases if case.group == "q"} == {groups[0].prompt}


def test_compressed_files(tmp_path):
    rows = [tree(ask("q", *two("a"))), group("h", [0, 1])]
    plain = read(tmp_path, *rows)
    path = tmp_path / "source.jsonl.gz"
    whole = gzip.compress((tmp_path / "source.jsonl").read_bytes())
    path.write_bytes(whole)
    assert ranked_groups(path, EFT) == plain
    for damaged in (whole[:-30], whole[:30] + b"\xff\xff\xff\xff" + whole[34:], b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            ranked_groups(path, EFT)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"message_id": "q", "text": "flat", "role": "prompter"}, "'context' is missing; expected message trees"),
        ({"message_tree_id": "q", "prompt": None}, "expected a message, got None"),
        (tree(answer("q", 0)), "expected a message by the prompter, got 'assistant'"),
        (tree(ask("q", ask("r"))), "expected a message by the assistant, got 'prompter'"),
        (tree(ask("q", answer("a", 0, text=None), deleted=True)), "'text' is missing"),
        (tree(ask("q", answer("a", 0, answer("b", 0)), deleted=True)), "expected a message by the prompter"),
        (tree(ask("q", answer("a", 0.5))), r"'rank' is 0\.5, not of type int"),
        (tree(ask("q", answer("a", True))), "'rank' is True, not of type int"),
        (tree(ask(None, *two("a"))), "'message_id' is missing"),
        (tree(ask("q", replies={})), "'replies' is {}, not of type list"),
        (group("q", [0, 1], [("prompter", "1"), ("assistant", "2")]), "has to begin and to end with a prompter's turn"),
        (group("q", [0, 1]) | {"context": []}, "has to begin and to end with a prompter's turn"),
        (group("q", [0, 1], [("assistant", "1")]), "expected a message by the prompter"),
        (group("q", [0, 1]) | {"replies": ["a", "b"]}, "expected a message, got 'a'"),
        (group("q", [0, 1]) | {"message_id": 7}, "'message_id' is 7, not of type str"),
    ],
)
def test_rows_of_another_format_are_named(tmp_path, row, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        read(tmp_path, tree(ask("fine", *two("x"))), row)
    assert f"{tmp_path / 'source.jsonl'}, line 2: " in str(error.value) and "\n" not in str(error.value)
