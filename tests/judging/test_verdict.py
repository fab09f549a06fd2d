"""Ugly verdicts with hand-stated readings, lines drawn from the grammar; and the promise that no text raises."""

import string
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judging.verdict import Failure, parse_score, parse_winner

# fmt: off
SCORES = {
    0: ["Score: 0", "Score: -0", "\u2022 TOTAL\u00a0score : [ 0 ]of5point", "Overall score: -0"],
    1: ["Score: 1", "Score: 1 point"],
    4: ["Score: 4", "Score: 4.0", "Score: 4.00.", "**Score:** 4", "**Score: 4**", "**Score**: 4", "__Score: 4__",
        "*Score:* *4*", "***Score: 4***.", "`Score: 4`", "Score: `4`", "# Score: 4", "###### Score: 4",
        "### **Score: 4/5**", "- Score: 4", "* Score: 4", "• **Score:** 4", "Final score: 4", "**Total Score:** 4",
        "Overall Score: 4", "final_score: 4", "Score: <4>", "Score: [4]", "Score: < 4 >", "Score: 4/5", "Score: 4 / 5",
        "Score: 4/5.", "**Score:** 4/5", "**Score:** **4**/5", "Score: [4]/5", "Score: 4 out of 5",
        "Score: 4 (out of 5)", "Score: 4 of 5", "Score: 4 out of 5 points.", "Score: 4 points", "Score: 4 Points.",
        "Score: 4 points out of 5", "I think so.\n\n## Final_Score\uff1a **4.0** / 5.\n"],
    5: ["Score: 5", "Score: 5/5 points", "score: 000000005"],
    3: ["score: 3", "SCORE: 3", "Score:3", "Score : 3", "  Score: 3  ", "\tScore:\t3\t", "Score:\u00a03",
        "Score\uff1a 3", "Score: 3.", "Score: 3 .", "Score: 03", "-score:<3>points(out of 5 points)."],
    2: ["Relevant, but thin.\nScore: 2", "Relevant, but thin.\n\nScore: 2\n\n \n", "Relevant.\r\nScore: 2\r\n",
        "Relevant.\rScore: 2", "It says 'Score: 5'.\nScore: 1\nNo, wait.\nScore: 2",
        "Braces {0} {score} %s.\nScore: 2"],
    Failure.MISSING: ["Score: 5\nThe response only claims that.", "Score: 5\n---", "```\nScore: 5\n```", "Score:\n5",
        "5", "The response is good. Score: 5", 'The user wrote "Score: 5"', '"Score: 5"', "> Score: 5", "Scores: 5",
        "Underscore: 5", "Score 5", "Score is 5", "####### Score: 5", "Final total score: 5", "\u017fcore: 5",
        "S\u0441ore: 5", "Score:", "Score: **", "Score: /5", "Score: out of 5", "Score: four", "Score: <total points>",
        "Score: N/A", "Score: nan", "Score: inf", "Score: -Infinity", "Score: None", "Score: IV", "Score: ٤",
        "Score: \uff14", "Score: ④", "Score: ⁴", "Score: ½", "# # score: 4", "finalscore: 4", "***"],
    Failure.EMPTY: ["", " \n\t\u2003\n", " \n\u2028\x1c"],
    Failure.AMBIGUOUS: ["Score: 4 5", "Score: 4, 4", "Score: 4 or 5", "Score: 4-5", "Score: 4*5", "Score: 4,5",
        "Score: 4 Score: 4", "Score: 4/5 or 3/5", "Score: 4/10", "Score: 4/50", "Score: 4/5.5", "Score: 4 out of 10",
        "Score: 80/100", "Score: 4 1/2", "Score: 1 + 1 + 1 = 3", "Score: 1e3", "Score: 4.5.1", "Score: 0x4",
        "score: 4/5.0", "score: 4/5. Good"],
    Failure.MALFORMED: ["Score: 4 because it is direct", "Score: 4/5 because it is direct", "Score: 4 (good)",
        "Score: about 4", "Score: 4!", "Score: 4?", "Score: 4%", "Score: 4+", "Score: +4", "Score: - 4",
        "Score: \N{MINUS SIGN}4", "Score: .5", "Score: 4½", "Score: 4²", "Score: 4\ufe0f\u20e3", "Score: 4 stars",
        "Score: <4", "Score: <4]", "Score: 4 (out of 5", "Score: $4$", "Score: 4</s>", "Score: 4 \u200b",
        "Score: " + "9" * 5000, "Score: 4." + "0" * 5000, "score: 0000000005", "score: 4 pointsof 5",
        "score: 4 /5 /5", "score: 4 scoreof 5points!"],
    Failure.OUT_OF_RANGE: ["Score: 6", "Score: 10/5", "Score: 45", "Score: -0.5", "score: 5.000000001 / 5"],
    Failure.FRACTION: ["Score: 4.5", "**Score:** 4.75/5", "Score: 0.5 points.", "score: 4.5."],
}
WINNERS = {
    "first": ["Winner: Judgement A", "Winner: Judgment A", "Winner: [Judgement A]", "Winner: A", "WINNER: JUDGMENT A",
        "**Winner:** Judgement A", "## Winner: **A**", "Judgment A quotes 'Winner: B'.\nWinner: Judgment A\n",
        "winner: a"],
    "second": ["Winner: Judgement B", "Winner: Judgment B.", "Winner: <Judgment B>", "winner: b",
        "Winner\uff1a judgment b", "**Winner: [Judgement B]**", "- Final winner: Judgment_B",
        "winner: 4\nFINAL winner: <judgement **b**>."],
    "tie": ["Winner: Tie", "Winner: [tie].", "- Winner:[Tie]"],
    Failure.EMPTY: ["", "\u2003"],
    Failure.MISSING: ["Winner:", "Winner: Judgment C", "Winner: Judgment 1", "Winner: neither", "Winner: первое",
        "Winner: \u0410", "Judgment A", "The winner: Judgment A", "Judgment A is better. Winner: A",
        "Winner: Judgment A\nIt follows the rubric.", "total winner: A", "winner: judgmentA",
        "winner: neither a nor c"],
    Failure.AMBIGUOUS: ["Winner: [Judgement A | Judgement B]", "Winner: A or B", "Winner: A, A",
        "Winner: judgment a and judgment b", "Winner: Judgment A, not a tie", "Winner: Judgment A over B",
        "winner: A or b", "winner: A A"],
    Failure.MALFORMED: ["Winner: Judgment B, with a closer reading", "Winner: Response A", "Winner: Judgment A!",
        "Winner: [Judgment A", "Winner: {A}", "winner: judgment tie", "winner: it is judgment a", "winner: a tie"],
}
# fmt: on


def test_ugly_verdicts():
    for reading, text in ((reading, text) for reading, texts in SCORES.items() for text in texts):
        assert parse_score(text, "stop") == reading, text
        assert type(parse_score(text, "stop")) is (Failure if isinstance(reading, Failure) else Fraction)
        if len(text.strip().splitlines()) == 1:
            assert parse_score(f"\n{text}\nScore: 1. No verdict here.\nScore: 2", "stop", "first") == reading, text
    for reading, text in ((reading, text) for reading, texts in WINNERS.items() for text in texts):
        assert parse_winner(text, "stop") == reading, text


def test_arguments():
    exact = {"4.5": Fraction(9, 2), "4.75/5": Fraction(19, 4), "0.1": Fraction(1, 10), "4.0": 4}
    for text, reading in (exact | {"5.01": Failure.OUT_OF_RANGE, "9/2": Failure.AMBIGUOUS}).items():
        assert parse_score(f"Score: {text}", "stop", fractions=True) == reading
    assert parse_score("It is relevant.\nScore: 3", "stop", "first") == Failure.MISSING
    assert parse_score("\nScore: 3\x0bScore: 4", "stop", "first") == 3
    assert parse_winner("Winner: B\u2028A is vague.\nWinner: A", "stop", "first") == "second"
    assert parse_winner("B is closer.\nWinner: B", "stop", "first") == Failure.MISSING
    for position in ("first", "last"):
        for parse, text in ((parse_score, "Score: 4"), (parse_winner, "Winner: A")):
            assert not isinstance(parse(text, "stop", position), Failure)
            assert parse(text, "length", position) is parse("", "length", position) is Failure.TRUNCATED
            assert parse("", "too_long", position) is Failure.TOO_LONG


GAPS = [" ", "  ", "\t", "\u00a0", "\u3000", "**", " _", "` ", "\x1f"]
BREAKS = ["\n", "\r\n", "\n\n", "\n \t\n", "\r", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"]
PROSE = ["The first answer is better.", "I would give 3 out of 5.", "Score: 1", "Winner: tie", "A", "**", "-", "```"]
MARKS = ["", "-", "•", *("#" * count for count in range(1, 7))]
WINNERS_OF = {"first": ["A", "judgment A", "judgement A"], "second": ["B", "judgment B", "judgement B"], "tie": ["tie"]}


def written(draw: Random, pieces: list[str], position: str) -> str:
    """Pieces of a verdict line with white space where it must or may be, in any case, emphasised, among other lines."""
    line = ""
    for piece in filter(None, pieces):
        needed = line[-1:].isalpha() and piece[0].isalpha()
        line += draw.choice(GAPS) if needed or draw.random() < 0.3 else ""
        piece = draw.choice([str, str.lower, str.upper, str.title])(piece)
        line += draw.choice(["", "", "", "*", "**", "_", "`"]).join(["", piece, ""])
    lines = [draw.choice(PROSE) for _ in range(draw.randrange(4))]
    lines.insert(0 if position == "first" else len(lines), line.replace(":", draw.choice([":", ":", "\uff1a"])))
    return draw.choice(["", "\n", " \u2028"]) + "".join(line + draw.choice(BREAKS) for line in lines)


def wrapped(draw: Random, value: str) -> list[str]:
    return draw.choice([[value], ["<", value, ">"], ["[", value, "]"]])


def test_each_form_of_the_grammar_is_read():
    draw = Random(1)
    for _ in range(3000):
        label, position = (
            [draw.choice(MARKS), draw.choice(["", "final", "total", "overall"])],
            draw.choice(["first", "last"]),
        )
        number = draw.choice(
            ["0", "3", "4", "5", "4.0", "2.5", "000000003", "-0", "3.000000000", f"4.{draw.randrange(1000)}"]
        )
        points = ["", "point", "points"]
        scale = [draw.choice(["/", "out of", "of"]), "5", draw.choice(points)]
        scale = draw.choice([[], scale, ["(", *scale, ")"]])
        pieces = [*label, "score", ":", *wrapped(draw, number), draw.choice(points), *scale, draw.choice(["", "."])]
        text = written(draw, pieces, position)
        assert parse_score(text, "stop", position, fractions=True) == Fraction(number), text
        winner = draw.choice([*WINNERS_OF])
        name = wrapped(draw, draw.choice(WINNERS_OF[winner]))
        pieces = [label[0], draw.choice(["", "final"]), "winner", ":", *name, draw.choice(["", "."])]
        text = written(draw, pieces, position)
        assert parse_winner(text, "stop", position) == winner, text


PIECES = ["Score", "Winner", "Judgment", "tie", "10", "out of", "points", *"AB:\uff1a45-./½٤()[]<>*_# \n\u2028"]
LIKELY = st.lists(st.sampled_from(PIECES)).map("".join)
ANY_TEXT = st.one_of(st.text(), LIKELY, st.text(st.characters()), st.text(string.printable))  # surrogates included


@settings(max_examples=60)
@given(ANY_TEXT, st.sampled_from(["stop", "length", "too_long"]), st.sampled_from(["first", "last"]), st.booleans())
def test_no_text_raises(text: str, finish_reason: str, verdict, fractions: bool):
    score = parse_score(text, finish_reason, verdict, fractions)
    winner = parse_winner(text, finish_reason, verdict)
    assert isinstance(score, Failure) or (0 <= score <= 5 and (fractions or score.denominator == 1))
    assert isinstance(winner, Failure) or winner in ("first", "second", "tie")


@pytest.mark.parametrize("piece", [" ", "\n", "*", "9", "(", "- ", "#", "points ", "/5 ", "out of 5 ", "Score: ", "A "])
def test_long_lines_are_read_in_linear_time(piece: str):
    for text in (piece * 100_000, "Score: 4" + piece * 100_000, "Winner: " + piece * 100_000 + "!"):
        parse_score(text, "stop")
        parse_winner(text, "stop")
