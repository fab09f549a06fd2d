"""Constructed judging data: `python -m prepare.construct` writes the made files of data/ (data/README.md).

It writes the same bytes again, as nothing but files of data/ goes in. With `--model FOLDER` it first samples
answers/*.jsonl.gz, the model's own answers to the prompts, anew (an hour on two cores).
"""

import gzip
import lzma
import operator
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from judging.rules import obeys, rules_of
from prepare.examples import labelled_rows
from prepare.flaws import Constructor, load_sources, repetitive
from prepare.near_misses import TURNS, NearMisses
from prepare.ruled import ruled_prompts
from sampling.llm import LLM, SamplingParams
from stages.command import arguments, command
from stages.files import read_jsonl, to_json, write_atomic
from stages.records import Record
from stages.seeds import request_seed

DATA = Path("data")
PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": partial(gzip.compress, mtime=0), ".xz": lzma.compress}
Files = Iterator[tuple[str, Iterable[Record]]]  # names below data/, and the rows of each file

FAMILIES = (("families", "f", 2400), ("families_evaluation", "g", 240))  # TOML file, ids' first letter, prompts
RULED: dict[str, tuple[str, int, bool, tuple[str, ...]]] = {
    "prompts/ruled.jsonl.gz": ("r", 2000, False, ("wordings",)),
    "prompts/ruled_tuning.jsonl": ("u", 200, True, ("tuning",)),
    "tuning/known_wordings.jsonl.gz": ("k", 400, True, ("wordings", "rewordings")),
}
"""For each file of prompts with rules: its ids' first letter, its prompts, whether their requests and topics are those
set apart for tuning, and the lists from which their wordings come."""
FAMILIES_SEED, CASES_SEED = 20240728, 2024
EVIDENCE = 0.4  # of the near misses have a justification, the others a score alone
TUNING = ("titles", "diary", "dos_and_donts", "soften")  # set apart: a recipe is chosen on prompts not trained on


@dataclass(frozen=True)
class Second:  # what the default's second lessons consist of, beside 400 judgments
    turns: dict[str, int]  # of rules, in near misses
    valued: str  # kinds of value pairs
    pairs: int  # of near misses
    values: int  # pairs
    comparisons: int
    own: int  # answers, whether they follow rules or not
    obedient: int  # and finished answers that do


SECOND = {
    "a": Second(
        {"words_at_least": 8}, "words_at_most words_at_least sentences words_at_least contains bullets",
        600, 700, 1000, 500, 0,
    ),
    "b": Second(
        {"words_at_most": 6, "words_at_least": 6},
        "words_at_most direction sentences words_at_least direction contains bullets", 600, 840, 900, 200, 700,
    ),
    "c": Second({"words_at_most": 16, "words_at_least": 16}, "sentences contains bullets", 900, 240, 1000, 400, 500),
}  # fmt: skip
NUMBERS: dict[str, Any] = {"few": ("three", "four", "five", "six", "seven", "eight", "nine")}
NUMBERS |= {"digit": range(3, 10), "many": range(12, 61)}

TEMPERATURES: dict[str, tuple[float, ...]] = dict.fromkeys(("train", "evaluation"), (0.2, 0.8, 1.6))
TEMPERATURES |= {"families": (0.4,), "families_tuning": (0.4,), "families_evaluation": (0.4, 1.6)}
TEMPERATURES["ruled"] = (0.6, 0.8, 1.0)
"""For each set of prompts: the temperatures of its answers."""
CASES = {"evaluation": (("evaluation", "families_evaluation"), 72, 120), "tuning": (("families_tuning",), 48, 60)}
"""For each folder: its sets of prompts, and the numbers of groups and of comparisons."""


def families(source: Record, letter: str, count: int) -> list[Record]:
    """`count` different prompts {id, prompt, category, topic, family} from `source`, a parsed TOML file.

    A family has three wordings and names the groups of topics that suit it. Families take turns; each takes the topic
    that it, and then all families, have used least, so that families, topics and wordings are about equally frequent.
    """
    draw = random.Random(FAMILIES_SEED)

    def fill(template: str, topic: str) -> str:
        template = re.sub(r"\{(few|digit|many)\}", lambda match: str(draw.choice(NUMBERS[match[1]])), template)
        return template.replace("{topic}", topic)

    used: Counter[tuple[str, ...]] = Counter()
    seen: set[str] = set()
    rows: list[Record] = []
    while len(rows) < count:
        names = list(source["families"])
        draw.shuffle(names)
        for name in names[: count - len(rows)]:
            family = source["families"][name]
            topics = [topic for group in family["groups"] for topic in source["topics"][group]]
            choices = [(topic, template) for topic in topics for template in family["templates"]]
            draw.shuffle(choices)
            choices.sort(key=lambda c: (used[name, *c], used[name, c[0]], used[c[0],], used[name, "wording", c[1]]))
            filled = ((topic, template, fill(template, topic)) for topic, template in choices)
            topic, template, prompt = next(candidate for candidate in filled if candidate[2] not in seen)
            seen.add(prompt)
            used.update([(topic,), (name, topic), (name, topic, template), (name, "wording", template)])
            row = {"id": f"{letter}{len(rows) + 1:04d}", "prompt": prompt, "category": family["category"]}
            rows.append(row | {"topic": topic, "family": name})
    return rows


def prompt_file(name: str) -> str:
    return f"prompts/{name}.jsonl" + ".gz" * (name in ("families", "ruled"))  # the large ones


def _toml(name: str) -> Record:
    return tomllib.loads((DATA / f"prompts/{name}.toml").read_text(encoding="utf-8"))


def prompt_files() -> Files:
    for name, letter, count in FAMILIES:
        rows = families(_toml(name), letter, count)
        yield prompt_file(name), [row for row in rows if row["family"] not in TUNING]
        if tuning := [row for row in rows if row["family"] in TUNING]:
            yield prompt_file("families_tuning"), tuning
    source, topics = (_toml(name) for name in ("ruled", "families"))
    for name, options in RULED.items():
        rows = ruled_prompts(source, topics["topics"], *options)
        instructions = [{key: row[key] for key in ("id", "prompt", "rules")} for row in rows]
        yield name, instructions if name.startswith("tuning") else rows
        if name == prompt_file("ruled_tuning"):
            yield "tuning/instructions.jsonl", instructions


def answer_files(model: Path) -> Files:
    """The answers of a model, at most 96 tokens each."""
    llm = LLM(model, device="cpu", num_kv_blocks=2048)
    for name, temperatures in TEMPERATURES.items():
        prompts = read_jsonl(DATA / prompt_file(name), ("id", "prompt"))
        asked = [(row, f"{row['id']}/{temperature}", temperature) for row in prompts for temperature in temperatures]
        params = [SamplingParams(t, 0.95, 96, request_seed(0, 0, "answers", answer)) for _, answer, t in asked]
        outputs = llm.chat([[{"role": "user", "content": row["prompt"]}] for row, _, _ in asked], params)
        names = [{"id": answer, "prompt_id": row["id"], "temperature": t} for row, answer, t in asked]
        texts = [{"text": output.text.strip(), "finish_reason": output.finish_reason} for output in outputs]
        yield f"answers/{name}.jsonl.gz", map(operator.or_, names, texts)


def constructor(names: Iterable[str], seed: int) -> Constructor:
    prompts = [row for name in names for row in read_jsonl(DATA / prompt_file(name))]
    answers = [row for name in names for row in read_jsonl(DATA / f"answers/{name}.jsonl.gz")]
    return Constructor(load_sources(prompts, answers), seed)


def sft_files() -> Files:
    """The SFT examples of the tests' and of the default config.

    The default's lessons: decisions alone; judgments, most of them near misses; judgments and comparisons in turn; in
    three files with the second lessons, near misses with rules in more words and other values, and comparisons. The
    model's own answers, at the temperature of the actor, are spread over all.
    """
    tiny = constructor(["train"], seed=0)
    judgments, comparisons = list(tiny.judge_examples(240)), list(tiny.metajudge_examples(120))
    yield "sft/tiny.jsonl.gz", [*judgments[:120], *spread(judgments[120:], comparisons)]

    default = constructor(["train", "families"], seed=1)
    decisions, judgments = list(default.judge_examples(300, decisions=True)), list(default.judge_examples(600))
    prompts, answers = (list(read_jsonl(DATA / name)) for name in (prompt_file("ruled"), "answers/ruled.jsonl.gz"))
    ruled = NearMisses(prompts, answers, seed=1)
    near_misses, spoiled = list(ruled.pairs(2800, EVIDENCE)), list(ruled.spoiled(900, EVIDENCE))
    written, draw = list(labelled_rows(DATA / "judged/train.jsonl")), random.Random(1)
    for rows in (spoiled, written):
        draw.shuffle(rows)
    judging = spread(judgments, near_misses, spoiled, written)
    half = len(judging) // 2
    judging = [*judging[:half], *spread(judging[half:], list(default.metajudge_examples(800)))]
    own = replay(["train", "ruled"], lambda row, _: row["temperature"] == 0.8)
    yield "sft/smollm2-135m.jsonl.xz", spread([*decisions, *judging], draw.sample(own, 1400))

    obedient = replay(["ruled"], lambda row, prompt: _finished(row) and obeys(rules_of(prompt), row["text"]))
    state = draw.getstate()
    for name, second in SECOND.items():
        draw.setstate(state)
        more = constructor(["train", "families"], seed=2)
        reworded = NearMisses(prompts, answers, 2, _toml("ruled"), TURNS | second.turns)
        near_misses = list(reworded.pairs(second.pairs, EVIDENCE))
        values = list(reworded.value_pairs(second.values, EVIDENCE, second.valued.split()))
        judgments, comparisons = list(more.judge_examples(400)), list(more.metajudge_examples(second.comparisons))
        acting = draw.sample(own, second.own)
        if second.obedient:
            acting += draw.sample(obedient, second.obedient)
            draw.shuffle(acting)
        yield f"sft/smollm2-135m-2{name}.jsonl.xz", spread(near_misses, values, judgments, comparisons, acting)


def replay(names: Iterable[str], taken: Callable[[Record, Record], bool]) -> list[Record]:
    """The model's answers that do not repeat themselves, as examples of acting; `taken` says which of them to take."""
    prompts = {row["id"]: row for name in names for row in read_jsonl(DATA / prompt_file(name))}
    answers = (row for name in names for row in read_jsonl(DATA / f"answers/{name}.jsonl.gz"))
    return [
        {"kind": "respond", "prompt": prompts[row["prompt_id"]]["prompt"], "response": row["text"]}
        | {"finished": _finished(row)}
        for row in answers
        if row["text"] and not repetitive(row["text"]) and taken(row, prompts[row["prompt_id"]])
    ]


def _finished(answer: Record) -> bool:
    return bool(answer["finish_reason"] == "stop")


def spread(*lists: list[Record]) -> list[Record]:
    """The items of all lists, spread evenly, with each list in its order."""
    placed = [((i + 0.5) / len(items), n, item) for n, items in enumerate(lists) for i, item in enumerate(items)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def case_files() -> Files:
    """Cases for the judge and the meta-judge. No training example comes from these prompts and answers."""
    for folder, (names, groups, comparisons) in CASES.items():
        made = constructor(names, CASES_SEED)
        rows = list(made.groups())
        made.random.shuffle(rows)
        yield f"{folder}/groups.jsonl", rows[:groups]
        yield f"{folder}/comparisons.jsonl", made.metajudge_examples(comparisons)


def write(files: Files) -> None:
    for name, rows in files:
        text = "".join(to_json(row, name) for row in rows)
        pack = PACKERS.get(Path(name).suffix, bytes)
        write_atomic(DATA / name, pack(text.encode()))


def main() -> None:
    model = arguments(__doc__, model={"type": Path, "help": "a Hugging Face directory"}).model
    for files in (prompt_files(), answer_files(model) if model else iter(()), sft_files(), case_files()):
        write(files)


if __name__ == "__main__":
    command(main)
