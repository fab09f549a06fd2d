"""Ugly verdicts with hand-stated readings, and the promise that no text raises."""

import string
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.verdict import Failure, parse_score, parse_winner

SCORES = [
    # plain
    ("Score: 0", 0),
    ("Score: 1", 1),
    ("Score: 4", 4),
    ("Score: 5", 5),
    ("score: 3", 3),
    ("SCORE: 3", 3),
    ("Score:3", 3),
    ("Score : 3", 3),
    ("  Score: 3  ", 3),
    ("\tScore:\t3\t", 3),
    ("Score:\u00a03", 3),  # a no-break space
    ("Score\uff1a 3", 3),  # a full-width colon
    ("Score: 3.", 3),
    ("Score: 3 .", 3),
    ("Score: 03", 3),
    ("Score: -0", 0),
    ("Score: 4.0", 4),
    ("Score: 4.00.", 4),
    # decoration
    ("**Score:** 4", 4),
    ("**Score: 4**", 4),
    ("**Score**: 4", 4),
    ("__Score: 4__", 4),
    ("*Score:* *4*", 4),
    ("***Score: 4***.", 4),
    ("`Score: 4`", 4),
    ("Score: `4`", 4),
    ("# Score: 4", 4),
    ("###### Score: 4", 4),
    ("### **Score: 4/5**", 4),
    ("- Score: 4", 4),
    ("* Score: 4", 4),
    ("• **Score:** 4", 4),
    ("Final score: 4", 4),
    ("**Total Score:** 4", 4),
    ("Overall Score: 4", 4),
    ("final_score: 4", 4),
    ("Score: <4>", 4),
    ("Score: [4]", 4),
    ("Score: < 4 >", 4),
    # scales and units
    ("Score: 4/5", 4),
    ("Score: 4 / 5", 4),
    ("Score: 4/5.", 4),
    ("**Score:** 4/5", 4),
    ("**Score:** **4**/5", 4),
    ("Score: [4]/5", 4),
    ("Score: 4 out of 5", 4),
    ("Score: 4 (out of 5)", 4),
    ("Score: 4 of 5", 4),
    ("Score: 4 out of 5 points.", 4),
    ("Score: 4 points", 4),
    ("Score: 1 point", 1),
    ("Score: 4 Points.", 4),
    ("Score: 4 points out of 5", 4),
    ("Score: 5/5 points", 5),
    # where it stands
    ("Relevant, but thin.\nScore: 2", 2),
    ("Relevant, but thin.\n\nScore: 2\n\n \n", 2),
    ("Relevant.\r\nScore: 2\r\n", 2),
    ("Relevant.\rScore: 2", 2),
    ("It says 'Score: 5'.\nScore: 1\nNo, wait.\nScore: 2", 2),
    ("Braces {0} {score} %s.\nScore: 2", 2),
    ("Score: 5\nThe response only claims that.", Failure.MISSING),
    ("Score: 5\n---", Failure.MISSING),
    ("```\nScore: 5\n```", Failure.MISSING),
    ("Score:\n5", Failure.MISSING),
    ("5", Failure.MISSING),
    ("The response is good. Score: 5", Failure.MISSING),
    ('The user wrote "Score: 5"', Failure.MISSING),
    ('"Score: 5"', Failure.MISSING),
    ("> Score: 5", Failure.MISSING),
    ("Scores: 5", Failure.MISSING),
    ("Underscore: 5", Failure.MISSING),
    ("Score 5", Failure.MISSING),
    ("Score is 5", Failure.MISSING),
    ("####### Score: 5", Failure.MISSING),
    ("Final total score: 5", Failure.MISSING),
    ("\u017fcore: 5", Failure.MISSING),  # a long s, which folds to s
    ("S\u0441ore: 5", Failure.MISSING),  # a Cyrillic c
    # no value
    ("", Failure.EMPTY),
    (" \n\t\u2003\n", Failure.EMPTY),
    ("Score:", Failure.MISSING),
    ("Score: **", Failure.MISSING),
    ("Score: /5", Failure.MISSING),
    ("Score: out of 5", Failure.MISSING),
    ("Score: four", Failure.MISSING),
    ("Score: <total points>", Failure.MISSING),
    ("Score: N/A", Failure.MISSING),
    ("Score: nan", Failure.MISSING),
    ("Score: inf", Failure.MISSING),
    ("Score: -Infinity", Failure.MISSING),
    ("Score: None", Failure.MISSING),
    ("Score: IV", Failure.MISSING),
    ("Score: ٤", Failure.MISSING),  # Arabic-Indic
    ("Score: \uff14", Failure.MISSING),  # full-width
    ("Score: ④", Failure.MISSING),
    ("Score: ⁴", Failure.MISSING),
    ("Score: ½", Failure.MISSING),
    # several values
    ("Score: 4 5", Failure.AMBIGUOUS),
    ("Score: 4, 4", Failure.AMBIGUOUS),
    ("Score: 4 or 5", Failure.AMBIGUOUS),
    ("Score: 4-5", Failure.AMBIGUOUS),
    ("Score: 4*5", Failure.AMBIGUOUS),
    ("Score: 4,5", Failure.AMBIGUOUS),
    ("Score: 4 Score: 4", Failure.AMBIGUOUS),
    ("Score: 4/5 or 3/5", Failure.AMBIGUOUS),
    ("Score: 4/10", Failure.AMBIGUOUS),
    ("Score: 4/50", Failure.AMBIGUOUS),
    ("Score: 4/5.5", Failure.AMBIGUOUS),
    ("Score: 4 out of 10", Failure.AMBIGUOUS),
    ("Score: 80/100", Failure.AMBIGUOUS),
    ("Score: 4 1/2", Failure.AMBIGUOUS),
    ("Score: 1 + 1 + 1 = 3", Failure.AMBIGUOUS),
    ("Score: 1e3", Failure.AMBIGUOUS),
    ("Score: 4.5.1", Failure.AMBIGUOUS),
    # one value and more
    ("Score: 4 because it is direct", Failure.MALFORMED),
    ("Score: 4/5 because it is direct", Failure.MALFORMED),
    ("Score: 4 (good)", Failure.MALFORMED),
    ("Score: about 4", Failure.MALFORMED),
    ("Score: 4!", Failure.MALFORMED),
    ("Score: 4?", Failure.MALFORMED),
    ("Score: 4%", Failure.MALFORMED),
    ("Score: 4+", Failure.MALFORMED),
    ("Score: +4", Failure.MALFORMED),
    ("Score: - 4", Failure.MALFORMED),
    ("Score: \N{MINUS SIGN}4", Failure.MALFORMED),
    ("Score: .5", Failure.MALFORMED),
    ("Score: 4½", Failure.MALFORMED),
    ("Score: 4²", Failure.MALFORMED),
    ("Score: 4\ufe0f\u20e3", Failure.MALFORMED),  # a keycap
    ("Score: 4 stars", Failure.MALFORMED),
    ("Score: <4", Failure.MALFORMED),
    ("Score: <4]", Failure.MALFORMED),
    ("Score: 4 (out of 5", Failure.MALFORMED),
    ("Score: $4$", Failure.MALFORMED),
    ("Score: 4</s>", Failure.MALFORMED),
    ("Score: 4 \u200b", Failure.MALFORMED),  # a zero-width space
    ("Score: 0x4", Failure.AMBIGUOUS),
    ("Score: " + "9" * 5000, Failure.MALFORMED),  # int() would raise
    ("Score: 4." + "0" * 5000, Failure.MALFORMED),
    # out of range, fractions
    ("Score: 6", Failure.OUT_OF_RANGE),
    ("Score: 10", Failure.OUT_OF_RANGE),
    ("Score: 10/5", Failure.OUT_OF_RANGE),
    ("Score: 45", Failure.OUT_OF_RANGE),
    ("Score: 100", Failure.OUT_OF_RANGE),
    ("Score: -1", Failure.OUT_OF_RANGE),
    ("Score: -0.5", Failure.OUT_OF_RANGE),
    ("Score: 5.5", Failure.OUT_OF_RANGE),
    ("Score: 4.5", Failure.FRACTION),
    ("**Score:** 4.75/5", Failure.FRACTION),
    ("Score: 0.5 points.", Failure.FRACTION),
]


@pytest.mark.parametrize(("text", "reading"), SCORES)
def test_score(text: str, reading: int | Failure):
    assert parse_score(text, "stop") == reading
    assert type(parse_score(text, "stop")) is (Failure if isinstance(reading, Failure) else Fraction)


def test_first_line_is_read_by_the_same_grammar():
    one_line = [(text, reading) for text, reading in SCORES if len(text.strip().splitlines()) == 1]
    assert len(one_line) > 80
    for text, reading in one_line:
        assert parse_score(f"\n{text}\nScore: 1. No verdict here.\nScore: 2", "stop", "first") == reading
    assert parse_score("It is relevant.\nScore: 3", "stop", "first") == Failure.MISSING


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Score: 4.5", Fraction(9, 2)),
        ("Score: 4.75/5", Fraction(19, 4)),
        ("Score: 0.1", Fraction(1, 10)),  # exactly, not the nearest double
        ("Score: 4.0", 4),
        ("Score: 3", 3),
        ("Score: 5.01", Failure.OUT_OF_RANGE),
        ("Score: 9/2", Failure.AMBIGUOUS),
    ],
)
def test_fractions_count_where_the_setting_allows_them(text: str, reading: Fraction | Failure):
    assert parse_score(text, "stop", fractions=True) == reading


WINNERS = [
    ("Winner: Judgement A", "first"),
    ("Winner: Judgement B", "second"),
    ("Winner: Judgment A", "first"),
    ("Winner: Judgment B.", "second"),
    ("Winner: [Judgement A]", "first"),
    ("Winner: <Judgment B>", "second"),
    ("Winner: A", "first"),
    ("winner: b", "second"),
    ("WINNER: JUDGMENT A", "first"),
    ("Winner\uff1a judgment b", "second"),
    ("**Winner:** Judgement A", "first"),
    ("**Winner: [Judgement B]**", "second"),
    ("## Winner: **A**", "first"),
    ("- Final winner: Judgment_B", "second"),
    ("Winner: Tie", "tie"),
    ("Winner: [tie].", "tie"),
    ("Judgment A quotes 'Winner: B'.\nWinner: Judgment A\n", "first"),
    ("", Failure.EMPTY),
    ("Winner:", Failure.MISSING),
    ("Winner: Judgment C", Failure.MISSING),
    ("Winner: Judgment 1", Failure.MISSING),
    ("Winner: neither", Failure.MISSING),
    ("Winner: первое", Failure.MISSING),
    ("Winner: \u0410", Failure.MISSING),  # a Cyrillic A
    ("Judgment A", Failure.MISSING),
    ("The winner: Judgment A", Failure.MISSING),
    ("Judgment A is better. Winner: A", Failure.MISSING),
    ("Winner: Judgment A\nIt follows the rubric.", Failure.MISSING),
    ("Winner: [Judgement A | Judgement B]", Failure.AMBIGUOUS),
    ("Winner: A or B", Failure.AMBIGUOUS),
    ("Winner: A, A", Failure.AMBIGUOUS),
    ("Winner: judgment a and judgment b", Failure.AMBIGUOUS),
    ("Winner: Judgment A, not a tie", Failure.AMBIGUOUS),
    ("Winner: Judgment A over B", Failure.AMBIGUOUS),
    ("Winner: Judgment B, with a closer reading", Failure.MALFORMED),
    ("Winner: Response A", Failure.MALFORMED),
    ("Winner: Judgment A!", Failure.MALFORMED),
    ("Winner: [Judgment A", Failure.MALFORMED),
    ("Winner: {A}", Failure.MALFORMED),
]


@pytest.mark.parametrize(("text", "reading"), WINNERS)
def test_winner(text: str, reading: str):
    assert parse_winner(text, "stop") == reading


def test_winner_on_the_first_line():
    assert parse_winner("Winner: B\nA is vague.\nWinner: A", "stop", "first") == "second"
    assert parse_winner("B is closer.\nWinner: B", "stop", "first") == Failure.MISSING


@pytest.mark.parametrize("verdict", ["first", "last"])
def test_only_a_stop_token_finishes_a_verdict(verdict):
    for parse, text in ((parse_score, "Score: 4"), (parse_winner, "Winner: A")):
        assert not isinstance(parse(text, "stop", verdict), Failure)
        assert parse(text, "length", verdict) is Failure.TRUNCATED
        assert parse("", "length", verdict) is Failure.TRUNCATED
        assert parse("", "too_long", verdict) is Failure.TOO_LONG


PIECES = [
    "Score",
    "Winner",
    "Judgment",
    "A",
    "B",
    "tie",
    ":",
    "\uff1a",
    "4",
    "5",
    "10",
    "-",
    ".",
    "/",
    "out of",
    "points",
]
PIECES += [*"()[]<>*_# \n\u2028", "nan", "½", "٤"]
LIKELY = st.lists(st.sampled_from(PIECES)).map("".join)
ANY_TEXT = st.one_of(st.text(), LIKELY, st.text(st.characters()), st.text(string.printable))  # surrogates included


@given(ANY_TEXT, st.sampled_from(["stop", "length", "too_long"]), st.sampled_from(["first", "last"]), st.booleans())
def test_no_text_raises(text: str, finish_reason: str, verdict, fractions: bool):
    score = parse_score(text, finish_reason, verdict, fractions)
    winner = parse_winner(text, finish_reason, verdict)
    assert isinstance(score, Failure) or (0 <= score <= 5 and (fractions or score.denominator == 1))
    assert isinstance(winner, Failure) or winner in ("first", "second", "tie")
    if finish_reason != "stop":
        assert isinstance(score, Failure) and isinstance(winner, Failure)


@pytest.mark.parametrize("piece", [" ", "\n", "*", "9", "(", "- ", "#", "points ", "/5 ", "out of 5 ", "Score: ", "A "])
def test_long_lines_are_read_in_linear_time(piece: str):
    for text in (piece * 100_000, "Score: 4" + piece * 100_000, "Winner: " + piece * 100_000 + "!"):
        parse_score(text, "stop")
        parse_winner(text, "stop")
