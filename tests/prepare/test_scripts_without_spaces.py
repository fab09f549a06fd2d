"""Texts in scripts without spaces between words: each letter with its marks is a word, to every measure of novelty."""

import pytest

from prepare.new_prompts import Dropped, Filter
from prepare.novelty import Sequences, repetition, split, words
from stages.settings import Prompts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("写一首关于大海的诗。", "写 一 首 关 于 大 海 的 诗"),
        ("海についての詩を書いて", "海 に つ い て の 詩 を 書 い て"),
        ("カタカナ", "カ タ カ ナ"),
        ("เขียนบทกวี", "เ ขี ย น บ ท ก ว ี".replace(" ี", "ี")),  # vowel signs above a letter belong to it
        ("用Python写", "用 python 写"),
        ("Python写2个", "python 写 2 个"),
        ("바다에 대한 시를 써 줘", "바다에 대한 시를 써 줘"),  # Korean has spaces
        ("Stra\u00dfe, caf\u0065\u0301 und 3.5", "straße café und 3 5"),
        ("हिन्दी में लिखो", "हिन्दी में लिखो"),
    ],
)
def test_the_words_of_a_text(text, wanted):
    assert words(text) == wanted.split()


def test_text_with_spaces_is_split_as_before():
    text = "Tell me -- please --\nwhy don't cats swim? 3.5 Straße हिन्दी 바다에"
    assert split(text) == text.split()


TASKS = {
    "Chinese": "请写一首关于秋天落叶的短诗、并解释它的含义。",
    "Japanese": "秋の落ち葉についての短い詩を書いて、その意味を説明してください。",
    "Thai": "ช่วยเขียนบทกวีสั้นๆ เกี่ยวกับใบไม้ร่วงในฤดูใบไม้ร่วง",
    "Khmer": "សូមសរសេរកំណាព្យខ្លីមួយអំពីស្លឹកឈើជ្រុះ",
}
OPTIONS = Prompts(min_words=3, max_words=150, ngram=8)


@pytest.mark.parametrize("language", TASKS)
def test_a_prompt_is_kept_once_and_not_where_it_is_an_evaluation_prompt(language):
    task = TASKS[language]
    accept = Filter(OPTIONS, ["Write a poem."], ["Why is the sky blue today, and not green?"])
    assert accept.read(f"Task 9: {task}", "stop") == task
    assert accept.read(f"Task 9: {task[:-2]}", "stop") == Dropped.SIMILAR
    known = Filter(OPTIONS, ["Write a poem."], [task])
    assert known.read(f"Task 9: {task[:-3]}", "stop") == Dropped.EVALUATION
    assert all(accept.read(f"Task 9: {other}", "stop") == other for name, other in TASKS.items() if name != language)


def test_too_few_too_many_and_repeated_letters():
    accept = Filter(Prompts(min_words=3, max_words=20, max_repetition=0.2), [], [])
    assert accept.read("Task 9: 你好", "stop") == Dropped.TOO_FEW_WORDS
    assert accept.read("Task 9: " + TASKS["Chinese"], "stop") == Dropped.TOO_MANY_WORDS  # 22 with comma and full stop
    assert accept.read("Task 9: 好好好好好好", "stop") == Dropped.REPETITIVE
    assert repetition("好好好好好好") == pytest.approx(3 / 4)  # of four triples one is new
    counted = Sequences(["一二三四五六七八九"], 8)
    assert counted.shares("这是二三四五六七八九吗") and not counted.shares("一二三四五六七九八")
