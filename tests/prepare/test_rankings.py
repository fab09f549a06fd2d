"""Human rankings: trees and groups worked by hand, every reason for leaving something out, and first questions."""

import gzip
from dataclasses import replace

import pytest

from evaluation.labelled import read_labelled
from prepare import pool
from prepare.new_prompts import read_seeds
from prepare.rankings import LeftOut, ranked_groups
from stages.command import UserError
from stages.files import write_jsonl
from stages.rows import conversation_text, read_rows
from stages.settings import Eft, load_settings

EFT = Eft(max_turns=2)
TALK = [("prompter", "1"), ("assistant", "2"), ("prompter", "3")]


def ask(name, *replies: dict, **fields) -> dict:
    known = {"message_id": name, "text": f"text of {name}", "role": "prompter", "lang": "en", "review_count": 3}
    return known | {"review_result": True, "deleted": False, "synthetic": False, "replies": list(replies)} | fields


def answer(name: str, rank, *replies: dict, **fields) -> dict:
    return ask(name, *replies, **{"role": "assistant", "rank": rank} | fields)


def two(name: str) -> list[dict]:
    return [answer(f"{name}1", 1), answer(f"{name}0", 0)]


def tree(root: dict, **fields) -> dict:
    return {"message_tree_id": root["message_id"], "tree_state": "ready_for_export", "prompt": root} | fields


def group(name: str, ranks: list[int], context=(("prompter", "?"),), **fields) -> dict:
    replies = [{"rank": rank, "text": f"reply {i}", **fields} for i, rank in enumerate(ranks)]
    return {"message_id": name, "context": [{"role": r, "text": t} for r, t in context], "replies": replies}


def texts(groups) -> list:
    return [(g.id, g.tree, {r["text"].removeprefix("text of "): r["rank"] for r in g.replies}) for g in groups]


@pytest.fixture
def read(tmp_path):
    def read(*rows: dict, eft: Eft = EFT):
        write_jsonl(tmp_path / "source.jsonl", rows)
        return ranked_groups(read_rows(tmp_path / "source.jsonl"), eft)

    return read


def test_every_question_of_a_tree_is_a_group_with_the_conversation_above_it(read):
    further = ask("q2", answer("c", 1), answer("d", 0, ask("q3", *two("e"))))
    root = ask("q1", answer("a", 0, further), answer("b", 1, ask("q4")), answer("x", 2))
    groups, reasons = read(tree(root))
    assert texts(groups) == [("q1", "q1", {"a": 0, "b": 1, "x": 2}), ("q2", "q1", {"c": 1, "d": 0})]
    assert groups[0].prompt == "text of q1"
    turns = [{"role": "prompter", "text": "text of q1"}, {"role": "assistant", "text": "text of a"}]
    assert groups[1].context == [*turns, {"role": "prompter", "text": "text of q2"}]
    assert reasons == {LeftOut.TOO_MANY_TURNS: 1, LeftOut.TOO_FEW_REPLIES: 1}  # q3; q4, where nobody answered
    assert groups[1].prompt == (
        "The response continues this conversation.\n\nUser:\ntext of q1\n\nAssistant:\ntext of a\n\nUser:\ntext of q2"
    )
    assert conversation_text([{"role": "prompter", "text": "Why {x}?"}]) == "Why {x}?"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"deleted": True}, LeftOut.DELETED),
        *(({"review_result": value}, LeftOut.UNREVIEWED) for value in (False, None)),
        *(({"lang": value}, LeftOut.LANGUAGE) for value in ("de", None)),
        ({"synthetic": True}, LeftOut.SYNTHETIC),
        ({"text": " \n"}, LeftOut.EMPTY),
    ],
)
def test_a_message_left_out_takes_what_is_below_with_it(read, fields, reason):
    """As a root, as a reply, and as a question further down: counted once, nothing below counted or kept."""
    assert read(tree(ask("q1", *two("a"), **fields))) == ([], {reason: 1})
    roots = [ask("q1", answer("x", 2, ask("q2", *two("c")), **fields), *two("a"))]
    further = ask("q2", answer("y", 0, ask("q3", *two("d"))), answer("z", 1), **fields)
    roots.append(ask("q1", answer("a0", 0, further), answer("a1", 1)))
    for root in roots:
        groups, reasons = read(tree(root), eft=Eft(max_turns=9))
        assert texts(groups) == [("q1", "q1", {"a1": 1, "a0": 0})] and reasons == {reason: 1}


@pytest.mark.parametrize(
    ("row", "kept", "reasons"),
    [
        (tree(ask("a", *two("x")), tree_state="growing"), [], [LeftOut.TREE_STATE]),
        (tree(ask("a", answer("x", 0))), [], [LeftOut.TOO_FEW_REPLIES]),
        (tree(ask("a", answer("x", 1), answer("y", 1))), [], [LeftOut.EQUAL_RANKS]),
        (group("a", [0, 1], [*TALK, ("assistant", "4"), ("prompter", "5")]), [], [LeftOut.TOO_MANY_TURNS]),
        (group("a", [0, 1], deleted=True), [], [LeftOut.DELETED, LeftOut.DELETED, LeftOut.TOO_FEW_REPLIES]),
        # An unranked reply may be talked about.
        (tree(ask("a", answer("x", None, ask("q2", *two("y"))), *two("z"))), [2, 2], [LeftOut.UNRANKED]),
        (tree(ask("a", answer("x", 2), answer("y", 0, text="text of x"), *two("z"))), [3], [LeftOut.DUPLICATE]),
        (group("a", [0, 2, 2], synthetic=True, model_name="m"), [3], []),
        # Exports leave out what is null.
        ({"prompt": {"message_id": "q", "role": "prompter", "text": "?", "replies": two("a")}}, [2], []),
    ],
)
def test_what_is_left_of_replies_and_groups(read, row, kept, reasons):
    groups, counts = read(row)
    assert [len(g.replies) for g in groups] == kept and sorted(counts.elements()) == sorted(reasons)
    assert all(g.tree == groups[0].id for g in groups)


def test_a_turn_of_a_single_group_may_leave_it_out(read):
    for place in range(3):
        row = group("h", [1, 0], TALK)
        row["context"][place]["lang"] = "fr"
        assert read(row) == ([], {LeftOut.LANGUAGE: 1})
        assert len(read(row, eft=Eft(max_turns=2, languages=["fr"]))[0]) == 1


def test_a_group_written_is_read_again_here_and_by_the_agreement(read, tmp_path):
    groups, _ = read(tree(ask("q", *two("a"))), group("h", [1, 0, 1], TALK))
    assert read(*(g.row() for g in groups)) == (groups, {})
    cases = read_labelled(tmp_path / "source.jsonl").cases
    expected = [(g.id, g.prompt, reply["text"], -reply["rank"]) for g in groups for reply in g.replies]
    assert [(case.group, case.prompt, case.text, case.quality) for case in cases] == expected
    path = tmp_path / "source.jsonl.gz"
    path.write_bytes(whole := gzip.compress((tmp_path / "source.jsonl").read_bytes()))
    assert ranked_groups(read_rows(path), EFT) == (groups, {})
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match="damaged"):
        ranked_groups(read_rows(path), EFT)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (tree(answer("q", 0)), "expected a message by the prompter, got {'message_id'"),
        (tree(ask("q", answer("a", 0, answer("b", 0)))), "expected a message by the prompter"),
        (tree(ask("q", answer("a", 0.5))), r"rank is 0\.5; it must be int or NoneType"),
        *((group("q", [0, 1], turns), "has to begin and to end with a prompter's turn") for turns in (TALK[:2], [])),
    ],
)
def test_rows_of_another_format_are_named(read, tmp_path, row, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        read(tree(ask("fine", *two("x"))), row)
    assert f"{tmp_path / 'source.jsonl'}, line 2: " in str(error.value) and "\n" not in str(error.value)


def test_first_questions_become_seed_prompts(tmp_path, monkeypatch):
    further = ask("q1b", *two("x"), text="And then?")
    rows = [ask("q1", answer("a", 0, further), answer("b", 1), text="Why is the sky blue?\n")]
    rows += [ask("q2", *two("c"), lang="fr"), ask("q3", answer("e", 0))]
    rows += [ask("q4", *two("f"), text="Why is the sky blue?"), ask("q5", *two("h")), ask("q6", *two("j"))]
    monkeypatch.chdir(tmp_path)
    write_jsonl("trees.jsonl", map(tree, rows))
    text = 'name = "t"\niteration = []\n[model]\npath = "m"\n[respond]\nprompts_per_iteration = 1\n'
    text += '[eft]\nsources = ["trees.jsonl"]\n[prompts]\nseeds = "seeds.jsonl"\nshots = 2\ngenerated_shots = 0\n'
    monkeypatch.setattr("sys.argv", ["seeds", "--config", "config.toml"])
    (tmp_path / "config.toml").write_text(text)
    pool.main()
    settings = load_settings(tmp_path / "config.toml")
    seeds = {row["id"]: row["prompt"] for row in read_seeds(settings.prompts)}
    assert seeds == {"q1": "Why is the sky blue?", "q5": "text of q5", "q6": "text of q6"}
    with pytest.raises(UserError, match=r"seeds\.jsonl: exists already"):
        pool.main()
    draws = {tuple(row["id"] for row in pool.seed_prompts(replace(settings, seed=i), 2)) for i in range(20)}
    assert draws == {("q1", "q5"), ("q1", "q6"), ("q5", "q6")}
