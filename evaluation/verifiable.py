"""Instructions about form that code can check, for answers of any model.

`python -m evaluation.verifiable --instructions data/evaluation/verifiable.jsonl --answers FILE` reads one answer
{id, text} for each instruction. It prints how many prompts had all their rules followed, how many rules were followed,
and the same by rule (`evaluation/rules.py` defines them). It is strict: a nearly right answer is wrong. It ignores all
other qualities of an answer. Intervals are bootstrap percentiles over prompts.

The measurement follows IFEval (Zhou et al., arXiv 2311.07911), which has 25 kinds of instructions. Prompts and
definitions here are the project's own, so numbers can't be compared with IFEval's.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.rules import ALPHABETS, PARAMETERS, Rule, followed
from evaluation.statistics import bootstrap, shortened
from stages.files import UserError, command, read_numbered_jsonl

KEYS = ("id", "prompt", "rules")


@dataclass(frozen=True)
class Instruction:
    """A prompt, and the rules in it."""

    id: str
    prompt: str
    rules: tuple[Rule, ...]


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file of rows {id, prompt, rules: [{rule: NAME, PARAMETER: value}]}, in its order.

    Raises `UserError` naming file, line and key for an unknown or missing key, rule or parameter, a value of the wrong
    type, and a repeated id.
    """
    instructions: dict[str, Instruction] = {}
    for number, row in read_numbered_jsonl(path, KEYS):
        where = f"{path}, line {number}"
        unknown = [key for key in row if key not in KEYS]
        if unknown:
            raise UserError(f"{where}: key {unknown[0]!r} is not known; a row has {', '.join(KEYS)}, remove it")
        for key in ("id", "prompt"):
            if not isinstance(row[key], str) or not row[key].strip():
                raise UserError(f"{where}: key {key!r} must be a text that is not empty; mend the row")
        if row["id"] in instructions:
            raise UserError(f"{where}: id {row['id']!r} came before; give each row its own")
        if not isinstance(row["rules"], list) or not row["rules"]:
            raise UserError(f"{where}: key 'rules' must be a list that is not empty; mend the row")
        rules = tuple(_rule(entry, f"{where}, rules[{place}]") for place, entry in enumerate(row["rules"]))
        instructions[row["id"]] = Instruction(row["id"], row["prompt"], rules)
    if not instructions:
        raise UserError(f"{path}: no instructions; name a file of rows with {', '.join(KEYS)}")
    return list(instructions.values())


def _rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object; mend the row")
    if "rule" not in entry:
        raise UserError(f"{where}: key 'rule' is missing; add it")
    name = entry["rule"]
    if not isinstance(name, str) or name not in PARAMETERS:
        raise UserError(f"{where}: rule {name!r} is not known; take one of {', '.join(PARAMETERS)}")
    key = PARAMETERS[name]
    unknown = [extra for extra in entry if extra not in ("rule", key)]
    if unknown:
        takes = f"takes only {key!r}" if key else "takes no parameter"
        raise UserError(f"{where}: key {unknown[0]!r} is not known, {name} {takes}; remove it")
    if key is None:
        return Rule(name)
    if key not in entry:
        raise UserError(f"{where}: key {key!r} of {name} is missing; add it")
    return Rule(name, _value(key, entry[key], where))


def _value(key: str, value: Any, where: str) -> int | str | tuple[str, ...]:
    """A valid value of the parameter `key`."""
    if key == "count":
        if type(value) is not int or value < 1:
            raise UserError(f"{where}: key 'count' is {value!r}; it must be a whole number from 1")
        return value
    if key == "alphabet":
        if not isinstance(value, str) or value not in ALPHABETS:
            raise UserError(f"{where}: key 'alphabet' is {value!r}; take one of {', '.join(ALPHABETS)}")
        return value
    if key == "text":
        if not _is_text(value):
            raise UserError(f"{where}: key 'text' is {value!r}; it must be a text without white space at its ends")
        return value
    if not isinstance(value, list) or not value or not all(map(_is_text, value)) or len(set(value)) < len(value):
        raise UserError(f"{where}: key {key!r} must be a list of different texts without white space at their ends")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip()


def read_texts(path: Path) -> dict[str, str]:
    """The answers by id, of a file of rows {id, text, ...}.

    Raises `UserError` naming file, line and key for a missing key, a value that is no text, and a repeated id.
    """
    texts: dict[str, str] = {}
    for number, row in read_numbered_jsonl(path, ("id", "text")):
        for key in ("id", "text"):
            if not isinstance(row[key], str):
                raise UserError(f"{path}, line {number}: key {key!r} must be a text; mend the row")
        if row["id"] in texts:
            raise UserError(f"{path}, line {number}: id {row['id']!r} came before; keep one answer to an instruction")
        texts[row["id"]] = row["text"]
    return texts


def verifiable_report(instructions: Sequence[Instruction], texts: Mapping[str, str]) -> dict[str, Any]:
    """The share of prompts with all rules followed ("strict"), of rules followed ("rules"), the same by rule, and for
    each id which of its rules were followed.

    Raises `UserError` naming instructions without an answer, and answers to unknown instructions.
    """
    missing = [instruction.id for instruction in instructions if instruction.id not in texts]
    if missing:
        raise UserError(
            f"no answer to {len(missing)} of {len(instructions)} instructions: {shortened(missing)}; answer them all"
        )
    unknown = set(texts) - {instruction.id for instruction in instructions}
    if unknown:
        raise UserError(f"{len(unknown)} answers to unknown instructions: {shortened(sorted(unknown))}; remove them")
    kept = {
        instruction.id: [followed(rule, texts[instruction.id]) for rule in instruction.rules]
        for instruction in instructions
    }
    by_rule = {}
    for name in PARAMETERS:
        groups = [
            [float(kept[instruction.id][place]) for place, rule in enumerate(instruction.rules) if rule.name == name]
            for instruction in instructions
        ]
        if any(groups):
            by_rule[name] = {"followed": int(sum(map(sum, groups)))} | bootstrap(groups)
    return {
        "prompts": len(instructions),
        "strict": bootstrap([[float(all(verdicts))] for verdicts in kept.values()]),
        "rules": bootstrap([list(map(float, verdicts)) for verdicts in kept.values()]),
        "by_rule": by_rule,
        "followed": kept,
    }


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as lines of text, without the single answers."""
    kept = report["followed"].values()
    whole = {"followed": sum(map(all, kept))} | report["strict"]
    single = {"followed": sum(map(sum, kept))} | report["rules"]
    for name, row in {"prompts": whole, "rules": single, **report["by_rule"]}.items():
        share = f"{row['value']:6.1%} [{row['low']:.1%}, {row['high']:.1%}]"
        yield f"{name:<14} {row['followed']:>4} of {row['count']:>4} {share}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the verifiable instructions that a model's answers follow.")
    parser.add_argument("--instructions", required=True, type=Path, help="JSON lines of {id, prompt, rules}")
    parser.add_argument("--answers", required=True, type=Path, help="JSON lines of {id, text}")
    parser.add_argument("--json", action="store_true", help="the whole report, for programs")
    arguments = parser.parse_args()
    instructions, texts = read_instructions(arguments.instructions), read_texts(arguments.answers)
    try:
        report = verifiable_report(instructions, texts)
    except UserError as error:
        raise UserError(f"{arguments.answers}: {error}") from None
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(*table(report), sep="\n")


if __name__ == "__main__":
    command(main)
