"""IFEval (Zhou et al., arXiv 2311.07911): its file of prompts, its 25 kinds of instruction, and its four numbers.

`python -m evaluation.verifiable --instructions input_data.jsonl --answers FILE` prints the shares of prompts with all
instructions followed and of instructions followed, strict and loose, and the same by kind. Each check is the published
one, also where an instruction says something else. Loose accepts a response if one of its eight `variants` follows.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.benchmarks import match
from evaluation.statistics import bootstrap, by_group, columns, each, shown
from stages.command import UserError
from stages.rows import LIST, NAME, TEXT, read_rows

LANGUAGES = "ar bg bn de en es fa fi fr gu he hi it ja kn ko ml mr ne pa pl pt ru sw ta te th uk ur vi"
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@dataclass(frozen=True)
class Prompt:
    """A row of IFEval's file: its key, its prompt, and for each of its instructions the kind and the arguments."""

    key: str
    text: str
    instructions: tuple[tuple[str, tuple[Any, ...]], ...]


def _compare(count: int, limit: int, relation: str) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _count(pattern: str, text: str, flags: re.RegexFlag = re.IGNORECASE) -> int:
    """How often a pattern occurs. Keywords are patterns, in either letter case, and may be part of a word."""
    return len(re.findall(pattern, text, flags))


def _parts(text: str, divider: str) -> list[str]:
    """The stripped texts between dividers. An empty one counts, except for the first and the last."""
    parts = [part.strip() for part in text.split(divider)]
    return parts[not parts[0] : len(parts) - (not parts[-1])]


def _starts_paragraph(text: str, total: int, place: int, wanted: str) -> bool:
    """Whether there are `total` paragraphs that are not empty, and the one at `place`, of all, begins with a word."""
    paragraphs = text.split("\n\n")
    count = sum(1 for paragraph in paragraphs if paragraph.strip())
    words = paragraphs[place - 1].split() if place <= count else []
    if count != total or not words:
        return False
    beginning = re.split("[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0]
    return "".join(map(str.lower, beginning)) == wanted.lower()  # a final sigma becomes lower alone, too


def _bullets(text: str) -> int:
    """The number of lines that begin with one asterisk, with something after it, or with a hyphen, as a rule does."""
    return _count(r"^\s*\*[^*].*$", text, re.MULTILINE) + _count(r"^\s*-", text, re.MULTILINE)


def _highlights(text: str) -> int:
    """The number of texts between single asterisks and between double ones. White space alone does not count."""
    contents = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(1 for content in contents if content.strip())


def _has_postscript(text: str, marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker.strip(), marker.strip().lower()), text.lower()) is not None


def _is_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # a RecursionError would end the published program
        return False
    return True


@cache
def _libraries() -> tuple[Any, Callable[[str], list[str]], Callable[[str], list[str]]]:
    """langdetect, and NLTK's tokenizers of sentences and words. The package punkt has the parameters NLTK downloads."""
    try:
        import langdetect
        import punkt
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError as error:
        raise UserError(f"IFEval needs more libraries ({error}); run pip install '.[ifeval]'") from None
    langdetect.DetectorFactory.seed = 0  # the published seed: langdetect samples a text's n-grams
    english, parameters = punkt.load_model("english"), PunktParameters()
    for name in ("abbrev_types", "collocations", "sent_starters", "ortho_context"):
        getattr(parameters, name).update(getattr(english, name))
    return langdetect, PunktSentenceTokenizer(parameters).tokenize, NLTKWordTokenizer().tokenize


def _is_language(text: str, language: str) -> bool:
    """Whether langdetect names this language. A text in which it finds none, such as a number, follows."""
    langdetect, _, _ = _libraries()
    try:
        return langdetect.detect(text) == language
    except langdetect.LangDetectException:
        return True


def _sentences(text: str) -> int:
    return len(_libraries()[1](text))


def _capital_words(text: str) -> int:
    _, sentences, words = _libraries()
    return sum(word.isupper() for sentence in sentences(text) for word in words(sentence))


KINDS: dict[str, tuple[str, Callable[..., bool]]] = {
    "keywords:existence": ("keywords", lambda text, words: all(_count(word, text) for word in words)),
    "keywords:frequency": (
        "keyword frequency relation",
        lambda text, word, *limit: _compare(_count(word.strip(), text), *limit),
    ),
    "keywords:forbidden_words": (
        "forbidden_words",
        lambda text, words: not any(_count(rf"\b{word}\b", text) for word in words),
    ),
    "keywords:letter_frequency": (
        "letter let_frequency let_relation",
        lambda text, letter, *limit: _compare(text.lower().count(letter.lower()), *limit),
    ),
    "language:response_language": ("language", _is_language),
    "length_constraints:number_sentences": ("num_sentences relation", lambda text, *n: _compare(_sentences(text), *n)),
    "length_constraints:number_paragraphs": (
        "num_paragraphs",
        lambda text, count: len(parts := _parts(text, "***")) == count and all(parts),
    ),
    "length_constraints:number_words": ("num_words relation", lambda text, *n: _compare(_count(r"\w+", text), *n)),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs nth_paragraph first_word", _starts_paragraph),
    "detectable_content:number_placeholders": ("num_placeholders", lambda text, n: _count(r"\[.*?\]", text) >= n),
    "detectable_content:postscript": ("postscript_marker", _has_postscript),
    "detectable_format:number_bullet_lists": ("num_bullets", lambda text, count: _bullets(text) == count),
    "detectable_format:constrained_response": ("", lambda text: any(answer in text for answer in ANSWERS)),
    "detectable_format:number_highlighted_sections": ("num_highlights", lambda text, n: _highlights(text) >= n),
    "detectable_format:multiple_sections": (
        "section_spliter num_sections",
        lambda text, word, limit: len(re.split(rf"\s?{word.strip()}\s?\d+\s?", text)) > limit,
    ),
    "detectable_format:json_format": ("", _is_json),
    "detectable_format:title": (
        "",
        lambda text: any(title.lstrip("<").rstrip(">").strip() for title in re.findall("<<[^\n]+>>", text)),
    ),
    "combination:two_responses": (
        "",
        lambda text: len(parts := _parts(text, "******")) == 2 and all(parts) and parts[0] != parts[1],
    ),
    "combination:repeat_prompt": (
        "prompt_to_repeat",
        lambda text, prompt: text.strip().lower().startswith(prompt.strip().lower()),
    ),
    "startend:end_checker": (
        "end_phrase",
        lambda text, phrase: text.strip().strip('"').lower().endswith(phrase.strip().lower()),
    ),
    "startend:quotation": ("", lambda text: re.fullmatch(r'\s*".*"\s*', text, re.DOTALL) is not None),
    "change_case:capital_word_frequency": (
        "capital_frequency capital_relation",
        lambda text, *limit: _compare(_capital_words(text), *limit),
    ),
    "change_case:english_capital": ("", lambda text: text.isupper() and _is_language(text, "en")),
    "change_case:english_lowercase": ("", lambda text: text.islower() and _is_language(text, "en")),
    "punctuation:no_comma": ("", lambda text: "," not in text),
}
"""By the kind's name: the names of its arguments, and the check of (text, arguments)."""


def followed(kind: str, arguments: Sequence[Any], text: str) -> bool:
    """Whether a text follows an instruction. One of white space only follows none."""
    return bool(text.strip()) and KINDS[kind][1](text, *arguments)


def variants(text: str) -> list[str]:
    """The text itself; without its first line, its last, and both; and these four without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys(cut + [some.replace("*", "") for some in cut]))


def _is_pattern(value: Any) -> bool:
    try:
        forms = (value, value.strip().lower())
        return bool(value.strip()) and all(re.compile(form) and re.compile(rf"\b{form}\b") for form in forms)
    except (AttributeError, OverflowError, RecursionError, re.error):
        return False


def _fits(name: str, values: Mapping[str, Any]) -> bool:
    """Whether an argument has a value of its kind. The published code draws a missing or negative one at random."""
    value = values[name]
    if name.endswith("relation"):
        return value in ("less than", "at least")
    if name in ("keywords", "forbidden_words"):
        return isinstance(value, list) and bool(value) and all(map(_is_pattern, value))
    if name in ("keyword", "section_spliter", "postscript_marker"):
        return _is_pattern(value)
    if name == "language":
        return value in LANGUAGES.split()
    if name in ("letter", "first_word", "prompt_to_repeat", "end_phrase"):
        return isinstance(value, str) and bool(value.strip()) and (name != "letter" or len(value.lower()) == 1)
    return type(value) is int and (value >= 0 if name != "nth_paragraph" else 1 <= value <= values["num_paragraphs"])


def _instruction(kind: Any, given: Mapping[str, Any], where: str) -> tuple[str, tuple[Any, ...]]:
    if kind not in list(KINDS):
        raise UserError(f"{where}: instruction {kind!r} is not one of IFEval's 25 kinds; mend or remove it")
    names = KINDS[kind][0].split()
    values = {name: value for name, value in given.items() if value is not None}
    if set(values) != set(names):
        raise UserError(f"{where}: the kwargs of {kind} are {given}; its keys are {', '.join(names) or 'none'}")
    for name in names:
        if not _fits(name, values):
            raise UserError(f"{where}: {name} of {kind} cannot be {values[name]!r:.60}; take IFEval's own value")
    return kind, tuple(values[name] for name in names)


def read_prompts(path: Path) -> list[Prompt]:
    """The rows {key, prompt, instruction_id_list, kwargs} of IFEval's file. A null among the kwargs counts as absent.

    Raises `UserError` naming file, line and key for a row of another form, an unknown kind, a wrong, missing or
    superfluous argument, and a repeated key or prompt.
    """
    prompts, seen = [], set[str]()
    for row in read_rows(path):
        key, text = str(row.value("key", kind=NAME)), row.value("prompt", kind=TEXT)
        kinds, given = row.value("instruction_id_list"), row.value("kwargs", kind=LIST)
        where = f"{row.where}, key {key}"
        if not isinstance(kinds, list) or len(kinds) != len(given):
            raise UserError(f"{where}: instruction_id_list must be a list, kwargs one of as many objects; mend the row")
        if not seen.isdisjoint((key, text)):
            raise UserError(f"{where}: the key or the prompt came before; remove the row")
        seen |= {key, text}
        prompts.append(Prompt(key, text, tuple(_instruction(*pair, where) for pair in zip(kinds, given, strict=True))))
    return prompts


def read_answers(path: Path, prompts: Iterable[Prompt]) -> dict[str, str]:
    """By key: the text of rows {key, text}, {id, text}, or {prompt, response}, as in IFEval's own response files.

    Raises `UserError` for a row of another form, a repeated key, and prompts and answers without the other.
    """
    keys, answers = {prompt.text: prompt.key for prompt in prompts}, dict[str, str]()
    for where, row in read_rows(path):
        name, text = row.get("key", row.get("id")), row.get("text")
        if text is None and isinstance(row.get("prompt"), str):
            name, text = keys.get(row["prompt"], row["prompt"]), row.get("response")
        if not isinstance(name, int | str) or not isinstance(text, str):
            raise UserError(f"{where}: the keys must be id or key, and text, or prompt and response")
        if str(name) in answers:
            raise UserError(f"{where}: {str(name)[:60]!r} came before; give each prompt one answer")
        answers[str(name)] = text
    match(list(keys.values()), answers, "prompts", f"{path}: ")
    return answers


def ifeval_report(prompts: Sequence[Prompt], answers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """For "strict" and "loose": the means of "prompts", "instructions" and each kind, with intervals over prompts."""
    report = {}
    for level, forms in (("strict", lambda text: [text]), ("loose", variants)):
        by_kind: dict[str, list[tuple[str, bool]]] = {kind: [] for kind in KINDS}
        kept = []
        for prompt in prompts:
            texts = forms(answers[prompt.key])
            kept.append([any(followed(*instruction, text) for text in texts) for instruction in prompt.instructions])
            for (kind, _), own in zip(prompt.instructions, kept[-1], strict=True):
                by_kind[kind].append((prompt.key, own))
        shares = {kind: by_group(verdicts) for kind, verdicts in by_kind.items() if verdicts}
        report[level] = {"prompts": each(map(all, kept)), "instructions": bootstrap(kept)} | shares
    return report


def table(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The report as lines of text."""
    loose = report["loose"]
    rows = [[name, str(own["count"]), shown(own), shown(loose[name])] for name, own in report["strict"].items()]
    return columns([["", "count", "strict", "loose"], *rows])
