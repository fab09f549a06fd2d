"""IFEval: each kind against a second implementation and on worked cases; the file, the answers, the four numbers."""

import random
import sys
from functools import cache
from hashlib import sha256

import ifeval_reference
import langdetect
import punkt
import pytest

from evaluation import ifeval, verifiable
from evaluation.ifeval import KINDS, Prompt, followed, ifeval_report, read_answers, read_prompts, table, variants
from stages.command import UserError
from stages.files import write_jsonl

RELATIONS = ("less than", "at least")
PROMPT = "Say it: sea?"
ANYTHING = " \n|\n\n|\n \n|\r\n|\t| |\u00a0|a|Word|WORD|it's|\u00e9|\u0394\u03a3|*|**|***|-|,|.|!|?|\"|'|[|]|<|>|1"
PIECES = {
    "keywords": "sea|Sea |SEAS| sea,|sea_|-sea|se|land|my land|land,",
    "letter": "s|S|#|##|\u00df",
    "sentences": "It ended. |He left! |Mr. |U.S. |e.g. |No. 5 |Is it?|... |NASA |A |I'm |USA.|\u201cYes.\u201d |1. ",
    "***": "***|\n***\n|******|****|a b|c|a *** b|a\n******\nc|\n\n|* * *",
    "words": "a|b_c|don't|3.5|--|\u4f60\u597d|, |_|x-y",
    "first": "\n\n|sea b\n\n|\n\n\n|\n|sea a|\n\nSea, b|\n\n'sea' |\n\n\"Sea\" |\n\nse'a |*sea |seas |sea.\n\nsea",
    "[]": "[x]|[a b]|[]|[|]|[\n]|[[x]]|(x)",
    "ps": "P.S.|p. s.|P.P.S|p.p.s.|P. P. S|P.\n S.|P S|PS:|ps: |\n",
    "bullets": "\n* a|\n- a|\n*a|\n**a|\n*\n|\n***|\n---|\n  * a|\n\n* |\n\u2022 a| * |\n-|\n+ a",
    "answer": "My answer is yes.|My answer is no|My answer is maybe.|my answer is yes.|.|yes",
    "stars": "*a*|**a**|***a***|* *|**|*|_a_|*a\nb*|** a **|\n* a|a",
    "section": "Section 1|Section2|SECTION 3|Section  4|Section \u0663|Section|\nSection 5\n|Section 1.2| 6",
    "json": '{}|[1, 2]|{"a": "b"}|{"a": 1,}|NaN|12|"x"|{\'a\': 1}|```|```json|```JSON\n|\n```|{"a": {"b": [null]}}',
    "title": "<<a>>|<<>>|<< >>|<<<>>>|<<a>|<a>>|<<a\n>>|<<|>>|<<a>>>",
    "repeat": "Say it: sea|SAY IT: SEA|Say it|: |sea?|\n| ",
    "end": 'The end.|THE END.|The end|"|""| |\n|.| the end. ',
    "quotes": '"|"a"|a|\u201ca\u201d|\'|\n|" "|b',
    "case": "WE GO HOME NOW|we go home now|Nous allons|1984|!|IBM|iPad|\u00df|\n|*we*|and the sea",
    "language": "We went to the sea in the morning. |Nous allons \u00e0 la mer ce matin. |Wir gehen ans Meer. |1984 |!",
}
SPECIAL = (
    "keywords keywords keywords letter language sentences *** words first [] ps bullets answer stars section json"
    " title *** repeat end quotes sentences case case words"
)
"""For each kind, in the table's order: the pieces that its texts are made of."""


def random_value(name: str, draw: random.Random):
    """An argument near the borders of the texts."""
    if name.endswith("relation"):
        return draw.choice(RELATIONS)
    values = {
        "keywords": (["sea"], ["land", "Sea"], ["my land"]),
        "forbidden_words": (["sea"], ["SEA", "land"], ["my land", "se"]),
        "keyword": ("sea", " Land ", "my land"),
        "letter": ("s", "S", "#", "!"),
        "language": ("en", "fr", "de"),
        "first_word": ("sea", "Sea", "sea", "se"),
        "postscript_marker": ("P.S.", "P.P.S", "PS:", " P.S. "),
        "section_spliter": ("Section", "SECTION", " Section"),
        "prompt_to_repeat": ("Say it: sea", " say it: SEA?", "Say"),
        "end_phrase": ("The end.", " THE END. ", "end"),
        "nth_paragraph": (1, 2),
        "num_paragraphs": (1, 2, 3),
    }
    return draw.choice(values.get(name, range(5)))


def random_text(kind: str, draw: random.Random) -> str:
    """A text of up to twelve pieces, two of three of them of the kind's own."""
    own, anything = PIECES[SPECIAL.split()[list(KINDS).index(kind)]].split("|"), ANYTHING.split("|")
    pieces = [draw.choice(own if draw.random() < 0.67 else anything) for _ in range(draw.randrange(13))]
    if draw.random() < 0.3:
        pieces = [draw.choice(own) for _ in range(draw.randint(1, 3))]
    text = draw.choice(("", " ", "\n")).join(pieces)
    return draw.choice((text, text, text.upper(), text.lower(), f'"{text}"', f"Sure:\n{text}\nBye!", f"**{text}**"))


def examples(kind: str, number: int):
    draw = random.Random(f"{kind} 1")
    for _ in range(number):
        yield {name: random_value(name, draw) for name in KINDS[kind][0].split()}, random_text(kind, draw)


@pytest.fixture
def cached_languages(monkeypatch):
    """Detect the language of each text once, since detection is slow."""
    for name in ("detect", "detect_langs"):
        monkeypatch.setattr(langdetect, name, cache(getattr(langdetect, name)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_with_a_second_implementation(kind, cached_languages):
    number = 50 if kind.startswith("language") else 160 if "english" in kind else 300
    results = []
    for kwargs, text in examples(kind, number):
        arguments = tuple(kwargs.values())
        strict, loose = followed(kind, arguments, text), any(followed(kind, arguments, form) for form in variants(text))
        assert strict == ifeval_reference.strict(kind, kwargs, text), (kwargs, text)
        assert loose == ifeval_reference.loose(kind, kwargs, text), (kwargs, text)
        results.append((strict, loose))
    assert min(sum(strict is own for strict, _ in results) for own in (False, True)) >= 6


LESS, LEAST = RELATIONS
WORKED = [
    ("keywords:existence", (["sea", "L.nd"],), "SEASON and lund", True),  # a part of a word; a pattern
    ("keywords:existence", (["sea", "land"],), "sea", False),
    ("keywords:frequency", ("sea", 2, LEAST), "Season, seas", True),
    ("keywords:frequency", ("sea", 2, LESS), "Season, seas", False),
    ("keywords:forbidden_words", (["sea"],), "season, sea_", True),
    ("keywords:forbidden_words", (["sea"],), "the SEA-salt", False),
    ("keywords:letter_frequency", ("#", 2, LEAST), "#a #b", True),
    ("keywords:letter_frequency", ("E", 2, LESS), "e E", False),
    ("language:response_language", ("de",), "Wir gehen heute Abend ans Meer.", True),
    ("language:response_language", ("fr",), "Wir gehen heute Abend ans Meer.", False),
    ("language:response_language", ("fr",), "1, 2, 3.", True),  # no language is found
    ("length_constraints:number_sentences", (2, LEAST), "Mr. Lee left at 5 p.m. for the U.S. office.", False),
    ("length_constraints:number_sentences", (3, LESS), "It rained! Did it? Yes", False),
    ("length_constraints:number_paragraphs", (2,), "***\na\n\nb\n*** c ***", True),
    ("length_constraints:number_paragraphs", (2,), "a\n***\n***\nb", False),  # an empty one in the middle
    ("length_constraints:number_paragraphs", (2,), "a\n****\nb", True),  # the fourth asterisk is b's
    ("length_constraints:number_words", (3, LESS), "don't well-known", False),  # don, t, well, known
    ("length_constraints:number_words", (1, LEAST), "-- !", False),
    ("length_constraints:nth_paragraph_first_word", (2, 2, "Sea"), "a\n\n'\"sea's b", True),
    ("length_constraints:nth_paragraph_first_word", (2, 2, "sea"), "a\n\n\n\nsea", False),  # the second one is empty
    ("length_constraints:nth_paragraph_first_word", (2, 1, "a"), "a\n\n\n\nsea", True),
    ("length_constraints:nth_paragraph_first_word", (2, 2, "sea"), "a\n\n\"'sea", False),  # ' goes before "
    ("length_constraints:nth_paragraph_first_word", (1, 1, "sea"), "sea: a", False),
    ("detectable_content:number_placeholders", (2,), "[a] [] [b\nc]", True),
    ("detectable_content:number_placeholders", (2,), "[[a]]", False),
    ("detectable_content:postscript", ("P.S.",), "a p. s. b", True),
    ("detectable_content:postscript", ("P.S.",), "P.P.S", False),
    ("detectable_content:postscript", ("P.S.",), "p.p.s.", True),
    ("detectable_content:postscript", ("P.P.S",), "P.\nP. strange", True),
    ("detectable_content:postscript", ("Note.",), "NOTES", True),  # another marker is a pattern
    ("detectable_format:number_bullet_lists", (3,), "* a\n  *b\n**c**\n-\n\u2022 d", True),
    ("detectable_format:number_bullet_lists", (1,), "*\n* a", True),  # the empty bullet takes the next line
    ("detectable_format:number_bullet_lists", (0,), "a\n***\n---", False),  # a rule of hyphens is a bullet
    ("detectable_format:constrained_response", (), "I think: My answer is maybe. Sorry", True),
    ("detectable_format:constrained_response", (), "My answer is Yes.", False),
    ("detectable_format:number_highlighted_sections", (3,), "*a* **b** *c\nd* ** ** ***e***", True),
    ("detectable_format:number_highlighted_sections", (2,), "*a*b*", False),
    ("detectable_format:multiple_sections", ("Day", 2), "Day 1 Day2", True),
    ("detectable_format:multiple_sections", ("Day", 2), "Day 1 day 2 Day  3 Day X", False),
    ("detectable_format:json_format", (), '```JSON\n{"a": NaN}\n```', True),
    ("detectable_format:json_format", (), "```Json[]", True),
    ("detectable_format:json_format", (), "5", True),
    ("detectable_format:json_format", (), 'Sure:\n{"a": 1}', False),
    ("detectable_format:json_format", (), "[" * 100_000, False),
    ("detectable_format:title", (), "a <<b>> c", True),
    ("detectable_format:title", (), "<< >>\n<<<>>>\n<<a\n>>", False),
    ("detectable_format:title", (), "<<>> <<>>", True),  # from the first << to the last >>
    ("combination:two_responses", (), "******a******\nb", True),
    ("combination:two_responses", (), "a****** a", False),
    ("combination:two_responses", (), "a************b", False),
    ("combination:repeat_prompt", ("Say it. ",), " SAY IT. No", True),
    ("combination:repeat_prompt", ("Say it.",), '"Say it." No', False),
    ("startend:end_checker", (" The end. ",), 'That was THE END.""', True),
    ("startend:end_checker", ("The end.",), "The end.*", False),
    ("startend:quotation", (), ' "a" and "b" ', True),
    ("startend:quotation", (), '"', False),
    ("startend:quotation", (), "\u201ca\u201d", False),
    ("change_case:capital_word_frequency", (3, LESS), "A WELL-KNOWN U.S.-based", True),  # one word with its hyphen
    ("change_case:capital_word_frequency", (3, LESS), "I CAN'T, iPad", False),  # I, CA and N'T
    ("change_case:english_capital", (), "WE WENT TO THE SEA IN THE MORNING 12!", True),
    ("change_case:english_capital", (), "NOUS ALLONS AUJOURD'HUI AVEC NOS AMIS", False),
    ("change_case:english_capital", (), "123", False),
    ("change_case:english_lowercase", (), "we went to the sea in the morning.", True),
    ("change_case:english_lowercase", (), "We went to the sea in the morning.", False),
    ("punctuation:no_comma", (), "a\uff0c b; c", True),
    ("punctuation:no_comma", (), "1,000", False),
]


def test_worked_cases():
    assert {kind for kind, *_ in WORKED} == set(KINDS) and len(KINDS) == 25
    for kind, arguments, text, own in WORKED:
        assert followed(kind, arguments, text) is own, (kind, arguments, text)
        assert not followed(kind, arguments, " \n")


def test_the_eight_variants():
    assert variants("*a*\n b*\nc ") == ["*a*\n b*\nc ", "b*\nc", "*a*\n b*", "b*", "a\n b\nc ", "b\nc", "a\n b", "b"]
    assert variants("a") == ["a", ""]


def test_the_sentence_parameters_are_those_of_nltk():
    """The digest is that of NLTK's own English data, punkt_tab."""
    model = punkt.load_model("english")
    parts = (model.abbrev_types, model.collocations, model.sent_starters, model.ortho_context.items())
    digest = sha256(repr([sorted(part) for part in parts]).encode()).hexdigest()
    assert digest == "1382107bd665caa2be62ed66f1fd1c89e10d565ee3b4a8b3b4db159b42c6bc5e"


def row(*kinds, **changes) -> dict:
    ids, kwargs = [kind for kind, _ in kinds], [values for _, values in kinds]
    return {"key": 7, "prompt": PROMPT, "instruction_id_list": ids, "kwargs": kwargs} | changes


BAD = (["foo\\"], ["x{99999999999}"], ["(" * 9999 + ")" * 9999])
COMMA, WORDS = ("punctuation:no_comma", {}), ("length_constraints:number_words", {"num_words": 3, "relation": LESS})


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (row(COMMA), "key 7: the key or the prompt came before"),
        (row(COMMA, key=8), "key 8: the key or the prompt came before"),
        (row(COMMA, key=8.5, prompt="p"), "key is 8.5; it must be a text or a whole number"),
        (row(COMMA, key=8, prompt=None), "prompt is None; it must be a text"),
        (row(key=8, prompt="p"), "kwargs is .*; it must be a list of objects"),
        (row(COMMA, key=8, prompt="p", kwargs=[None]), "kwargs is .*; it must be a list of objects"),
        (row(COMMA, key=8, prompt="p", kwargs=[{}, {}]), "one of as many objects"),
        (row(("keywords:rhyme", {}), key=8, prompt="p"), "key 8: instruction 'keywords:rhyme' is not one of IFEval's"),
        ({"key": 8, "prompt": "p", "instruction_id_list": []}, "key 'kwargs' is missing"),
        *(
            (row((kind, kwargs), key=8, prompt="p"), "key 8: .*" + complaint)
            for kind, kwargs, complaint in (
                (COMMA[0], {"n": 1}, "the kwargs of punctuation:no_comma are {'n': 1}; its keys are none"),
                (WORDS[0], {"num_words": 3, "relation": None}, "its keys are num_words, relation"),
                (WORDS[0], {"num_words": 3, "relation": "at most"}, "relation of .* cannot be 'at most'"),
                *((WORDS[0], {"num_words": n, "relation": LESS}, "num_words of") for n in (-1, 3.0, "3", True)),
                *(
                    ("keywords:existence", {"keywords": words}, "keywords of")
                    for words in ([], "sea", ["("], [1], *BAD)
                ),
                *(
                    ("keywords:frequency", {"keyword": x, "frequency": 1, "relation": LESS}, "keyword of")
                    for [x] in BAD
                ),
                *(("detectable_content:postscript", {"postscript_marker": x}, "postscript_marker of") for [x] in BAD),
                *(("language:response_language", {"language": code}, "language of") for code in ("zh", ["en"])),
                *(
                    ("keywords:letter_frequency", {"letter": x, "let_frequency": 1, "let_relation": LESS}, "letter of")
                    for x in (" ", "ab", "", 1)
                ),
                ("startend:end_checker", {"end_phrase": " "}, "end_phrase of"),
                ("detectable_format:multiple_sections", {"section_spliter": "[", "num_sections": 1}, "section_spliter"),
                *(
                    (
                        "length_constraints:nth_paragraph_first_word",
                        {"num_paragraphs": 2, "nth_paragraph": n, "first_word": "a"},
                        "nth_paragraph of",
                    )
                    for n in (0, 3)
                ),
            )
        ),
    ],
)
def test_bad_prompts_are_one_line(tmp_path, second, complaint):
    write_jsonl(tmp_path / "i.jsonl", [row(COMMA), second])
    with pytest.raises(UserError, match=r"i\.jsonl, line 2.*" + complaint) as error:
        read_prompts(tmp_path / "i.jsonl")
    assert "\n" not in str(error.value)


def test_nulls_count_as_absent(tmp_path):
    """The copy of the file on Hugging Face has all arguments in all rows."""
    write_jsonl(tmp_path / "i.jsonl", [row(WORDS, COMMA, kwargs=[WORDS[1] | {"keywords": None}, {"num_words": None}])])
    assert read_prompts(tmp_path / "i.jsonl") == [Prompt("7", PROMPT, ((WORDS[0], (3, LESS)), (COMMA[0], ())))]


PROMPTS = [Prompt("7", PROMPT, ((COMMA[0], ()), (WORDS[0], (3, LESS)))), Prompt("8", "p ", ((COMMA[0], ()),))]


def test_answers_have_three_forms(tmp_path):
    path = tmp_path / "a.jsonl"
    for rows in (
        [{"id": "8", "text": ""}, {"id": "7", "text": "b"}],
        [{"key": 7, "text": "b", "prompt": "other"}, {"key": 8, "text": ""}],
        [{"prompt": PROMPT, "response": "b"}, {"prompt": "p ", "response": "", "key": 1}],
    ):
        write_jsonl(path, rows)
        assert read_answers(path, PROMPTS) == {"7": "b", "8": ""}
    for rows, complaint in (
        ([{"id": "7"}], "line 1: the keys must be id or key, and text, or prompt and response"),
        ([{"prompt": PROMPT, "response": None}], "line 1: the keys must be"),
        ([{"id": 7, "text": "a"}, {"prompt": PROMPT, "response": "a"}], "line 2: '7' came before"),
        ([{"id": 7, "text": "a"}], "no answer to 1 of 2 prompts: '8'; answer all"),
        ([{"id": key, "text": "a"} for key in "789"], "1 answers to unknown prompts: '9'; remove them"),
    ):
        write_jsonl(path, rows)
        with pytest.raises(UserError, match=r"a\.jsonl.*" + complaint):
            read_answers(path, PROMPTS)


def test_the_command_prints_a_worked_report(tmp_path, monkeypatch, capsys):
    """7 has a comma and four words, and without its first line neither; 8 has none."""
    write_jsonl(tmp_path / "i.jsonl", [row(COMMA, WORDS), row(COMMA, key=8, prompt="p ")])
    answers = {"7": "Sure, here:\nblue sea", "8": "b"}
    write_jsonl(tmp_path / "a.jsonl", [{"id": key, "text": text} for key, text in answers.items()])
    report = ifeval_report(PROMPTS, answers)
    assert report["strict"]["prompts"] == {"value": 0.5, "low": 0.0, "high": 1.0, "count": 2}
    assert [(name, mean["value"], mean["count"]) for name, mean in report["strict"].items()] == [
        ("prompts", 0.5, 2),
        ("instructions", 0.3333, 3),
        (WORDS[0], 0.0, 1),
        (COMMA[0], 0.5, 2),
    ]
    assert {mean["value"] for mean in report["loose"].values()} == {1.0}
    monkeypatch.setattr(
        sys, "argv", ["verifiable", f"--instructions={tmp_path}/i.jsonl", f"--answers={tmp_path}/a.jsonl"]
    )
    verifiable.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines == table(report) and lines[0].split() == ["count", "strict", "loose"]
    assert lines[2].split()[:3] == ["instructions", "3", "33.3%"]


def test_the_language_detector_has_the_published_seed(monkeypatch):
    ifeval._libraries.cache_clear()
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", None)
    assert followed("language:response_language", ("en",), "We went to the sea.")
    assert langdetect.DetectorFactory.seed == 0


def test_a_missing_library_is_one_line(monkeypatch):
    ifeval._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match=r"more libraries \(.*langdetect.*\); run pip install '\.\[ifeval\]'"):
        followed("language:response_language", ("en",), "a")
    assert followed("punctuation:no_comma", (), "a")
