"""IFEval's definitions a second time, for tests: read character by character where the product uses patterns."""

import json
from itertools import groupby, product

import langdetect
import punkt
from nltk.tokenize import word_tokenize
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

langdetect.DetectorFactory.seed = 0


def strict(kind: str, kwargs: dict, text: str) -> bool:
    """Whether a text follows an instruction."""
    group, name = kind.split(":")
    return text.strip() != "" and globals()[f"{group}_{name}"](text, **kwargs)


def loose(kind: str, kwargs: dict, text: str) -> bool:
    """Whether a text follows with or without its first line, its last line and its asterisks."""
    for first, last, stars in product((False, True), repeat=3):
        lines = text.split("\n")
        if first:
            del lines[0]
        if last:
            del lines[-1:]
        form = "\n".join(lines).strip() if first or last else text
        if strict(kind, kwargs, "".join(form.split("*")) if stars else form):
            return True
    return False


def related(number: int, relation: str, limit: int) -> bool:
    return {"less than": number < limit, "at least": number >= limit}[relation]


def is_word(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


def places(word: str, text: str, whole: bool = False) -> list[int]:
    """Where a word occurs, in any case, without overlap; with `whole` only between a word's end and another's start."""
    result, place = [], 0
    while place + len(word) <= len(text):
        end = place + len(word)
        same = all(a.lower() == b.lower() for a, b in zip(text[place:end], word, strict=True))
        if same and whole:
            same = is_word(text, place - 1) != is_word(text, place) and is_word(text, end - 1) != is_word(text, end)
        result += [place] if same else []
        place = end if same else place + 1
    return result


def keywords_existence(text, keywords):
    return min(len(places(word, text)) for word in keywords) > 0


def keywords_frequency(text, keyword, frequency, relation):
    return related(len(places(keyword.strip(), text)), relation, frequency)


def keywords_forbidden_words(text, forbidden_words):
    return sum(len(places(word, text, whole=True)) for word in forbidden_words) == 0


def keywords_letter_frequency(text, letter, let_frequency, let_relation):
    return related(sum(c == letter.lower() for c in text.lower()), let_relation, let_frequency)


def language_response_language(text, language):
    try:
        found = langdetect.detect_langs(text)
    except langdetect.LangDetectException:
        return True
    return bool(found) and found[0].lang == language


def sentence_tokenizer():
    parameters, model = PunktParameters(), punkt.load_model("english")
    parameters.abbrev_types, parameters.sent_starters = model.abbrev_types, model.sent_starters
    parameters.collocations = model.collocations
    for word, flags in model.ortho_context.items():
        parameters.ortho_context[word] = flags
    return PunktSentenceTokenizer(parameters)


TOKENIZER = sentence_tokenizer()


def length_constraints_number_sentences(text, num_sentences, relation):
    return related(sum(1 for _ in TOKENIZER.span_tokenize(text)), relation, num_sentences)


def pieces(text: str, mark: str) -> list[str]:
    result, place = [""], 0
    while place < len(text):
        if text.startswith(mark, place):
            result.append("")
            place += len(mark)
        else:
            result[-1] += text[place]
            place += 1
    return result


def length_constraints_number_paragraphs(text, num_paragraphs):
    parts = [part.isspace() or not part for part in pieces(text, "***")]
    if any(parts[1:-1]):
        return False
    edges = 0 if len(parts) == 1 else parts[0] + parts[-1]
    return len(parts) - edges == num_paragraphs


def length_constraints_number_words(text, num_words, relation):
    runs = groupby(range(len(text)), lambda place: is_word(text, place))
    return related(sum(word for word, _ in runs), relation, num_words)


def length_constraints_nth_paragraph_first_word(text, num_paragraphs, nth_paragraph, first_word):
    paragraphs = pieces(text, "\n\n")
    filled = len(paragraphs) - sum(not paragraph.strip() for paragraph in paragraphs)
    if nth_paragraph > filled or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split(None, 1)[0]
    for quote in "'\"":
        while word.startswith(quote):
            word = word[1:]
    letters = []
    for letter in word:
        if letter in (".", ",", "?", "!", "'", '"'):
            break
        letters += letter.lower()
    return filled == num_paragraphs and "".join(letters) == first_word.lower()


def detectable_content_number_placeholders(text, num_placeholders):
    number, opened = 0, False
    for c in text:
        number += opened and c == "]"
        opened = c == "[" or (opened and c not in "]\n")
    return number >= num_placeholders


def detectable_content_postscript(text, postscript_marker):
    marker = postscript_marker.strip()
    marks = {"P.S.": ["p.", "s."], "P.P.S": ["p.", "p.", "s"]}.get(marker, [marker.lower()])
    return any(spelled(text.lower()[place:], marks) for place in range(len(text.lower())))


def spelled(text: str, marks: list[str]) -> bool:
    """Whether a text begins with these marks, with at most one white space between any two."""
    if not text.startswith(marks[0]):
        return False
    text = text[len(marks[0]) :]
    return not marks[1:] or spelled(text[1:] if text[:1].isspace() else text, marks[1:])


def bullets(text: str, mark: str) -> int:
    """Lines whose first character that is no white space is the mark, which another character must follow for *."""
    number = place = 0
    while place <= len(text):
        if place == 0 or text[place - 1] == "\n":
            start = place
            while start < len(text) and text[start].isspace():
                start += 1
            after = start + 1
            if text[start : start + 1] == mark and (mark == "-" or text[after : after + 1] not in ("", "*")):
                number += 1
                place = text.find("\n", after if mark == "-" else after + 1)
                if place < 0:
                    return number
        place += 1
    return number


def detectable_format_number_bullet_lists(text, num_bullets):
    return bullets(text, "*") + bullets(text, "-") == num_bullets


def detectable_format_constrained_response(text):
    return True in [f"My answer is {word}." in text for word in ("maybe", "no", "yes")]


def highlights(text: str, mark: str) -> int:
    number = place = 0
    while place < len(text):
        end = place + len(mark)
        if text.startswith(mark, place):
            while end < len(text) and text[end] not in "*\n":
                end += 1
            if text.startswith(mark, end):
                number += not (text[place + len(mark) : end].isspace() or end == place + len(mark))
                place = end + len(mark)
                continue
        place += 1
    return number


def detectable_format_number_highlighted_sections(text, num_highlights):
    return highlights(text, "*") + highlights(text, "**") >= num_highlights


def detectable_format_multiple_sections(text, section_spliter, num_sections):
    word, number, place = section_spliter.strip(), 0, 0
    while (place := text.find(word, place)) >= 0:
        end = place + len(word)
        end += end < len(text) and text[end].isspace()
        start = end
        while end < len(text) and text[end].isdecimal():
            end += 1
        number += end > start
        place = end if end > start else place + 1
    return number >= num_sections


def detectable_format_json_format(text):
    text = text.strip()
    for start in ("```json", "```Json", "```JSON", "```"):
        text = text[len(start) :] if text[: len(start)] == start else text
    text = (text[:-3] if text[-3:] == "```" else text).strip()
    try:
        return json.JSONDecoder().raw_decode(text)[1] == len(text)
    except ValueError:
        return False


def detectable_format_title(text):
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end - start >= 3 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def combination_two_responses(text):
    answers = [part.strip() for part in pieces(text, "******")]
    if not all(answers[1:-1]):
        return False
    filled = [answer for answer in answers if answer]
    return len(filled) == 2 == len(set(filled))


def combination_repeat_prompt(text, prompt_to_repeat):
    prompt = prompt_to_repeat.strip().lower()
    return text.strip().lower()[: len(prompt)] == prompt


def startend_end_checker(text, end_phrase):
    text, phrase = text.strip(), end_phrase.strip().lower()
    while text[:1] == '"':
        text = text[1:]
    while text[-1:] == '"':
        text = text[:-1]
    return text.lower()[max(0, len(text.lower()) - len(phrase)) :] == phrase


def startend_quotation(text):
    first, *rest = text.strip()
    return first == '"' and rest[-1:] == ['"']


def change_case_capital_word_frequency(text, capital_frequency, capital_relation):
    words = [word for start, end in TOKENIZER.span_tokenize(text) for word in word_tokenize(text[start:end], "", True)]
    return related(len(list(filter(str.isupper, words))), capital_relation, capital_frequency)


def change_case_english_capital(text):
    return text.isupper() and language_response_language(text, "en")


def change_case_english_lowercase(text):
    return text.islower() and language_response_language(text, "en")


def punctuation_no_comma(text):
    return text.find(",") < 0
