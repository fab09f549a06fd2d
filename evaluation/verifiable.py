"""Instructions about form that code can check, after IFEval (Zhou et al., arXiv 2311.07911), for any model's answers.

`python -m evaluation.verifiable --instructions data/evaluation/verifiable.jsonl --answers FILE` prints how many prompts
had all their rules followed, how many rules were followed, and the same by rule. Intervals are over prompts.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.rules import RULES, VALUES, Rule, followed
from evaluation.statistics import bootstrap, by_group, each, shortened, shown
from stages.files import UserError, command, read_numbered_jsonl


@dataclass(frozen=True)
class Instruction:
    id: str
    prompt: str
    rules: tuple[Rule, ...]


def read_rows(path: Path, text: str, *others: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """By id: (place, row) of a file of rows that have a text of the name `text`, and the keys `others`.

    Raises `UserError` for a missing key, a value that is no text, a repeated id, and an empty file.
    """
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in read_numbered_jsonl(path, ("id", text, *others)):
        where = f"{path}, line {number}"
        for key in ("id", text):
            if not isinstance(row[key], str) or not (row[key].strip() or key == "text"):
                raise UserError(f"{where}: key {key!r} must be a text that is not empty; mend the row")
        if row["id"] in rows:
            raise UserError(f"{where}: id {row['id']!r} came before; give each row its own")
        rows[row["id"]] = where, row
    if not rows:
        raise UserError(f"{path}: no rows; name a file of rows with {', '.join(('id', text, *others))}")
    return rows


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file of rows {id, prompt, rules: [{rule: NAME, PARAMETER: value}]}, in its order.

    Raises the errors of `read_rows`, and `UserError` for an unknown rule, and another parameter or value than its own.
    """
    instructions = []
    for name, (where, row) in read_rows(path, "prompt", "rules").items():
        if set(row) != {"id", "prompt", "rules"} or not isinstance(row["rules"], list) or not row["rules"]:
            raise UserError(f"{where}: the keys are {', '.join(row)}; they must be id, prompt, and a list of rules")
        rules = tuple(_rule(entry, f"{where}, rules[{place}]") for place, entry in enumerate(row["rules"]))
        instructions.append(Instruction(name, row["prompt"], rules))
    return instructions


def _rule(entry: Any, where: str) -> Rule:
    name = entry.get("rule") if isinstance(entry, dict) else None
    if name not in list(RULES):
        raise UserError(f"{where}: rule {name!r} is not known; take one of {', '.join(RULES)}")
    key = RULES[name][0]
    if set(entry) != {"rule", key} - {""} or not (key == "" or VALUES[key](entry[key])):
        raise UserError(f"{where} is {entry}; docs/evaluation.md describes {name} {{{key}}}")
    return Rule(name, tuple(entry[key]) if key in ("words", "keys") else entry.get(key))


def verifiable_report(instructions: Sequence[Instruction], texts: Mapping[str, str]) -> dict[str, Any]:
    """The share of prompts with all rules followed ("strict"), of rules followed ("rules"), the same by rule, and for
    each id which of its rules were followed. Raises `UserError` naming missing answers and unknown ones.
    """
    names = [item.id for item in instructions]
    if missing := [name for name in names if name not in texts]:
        raise UserError(f"no answer to {len(missing)} of {len(names)} instructions: {shortened(missing)}; answer all")
    if unknown := sorted(set(texts) - set(names)):
        raise UserError(f"{len(unknown)} answers to unknown instructions: {shortened(unknown)}; remove them")
    kept = {item.id: [followed(rule, texts[item.id]) for rule in item.rules] for item in instructions}
    by_rule: dict[str, list[tuple[str, bool]]] = {name: [] for name in RULES}
    for item in instructions:
        for rule, own in zip(item.rules, kept[item.id], strict=True):
            by_rule[rule.name].append((item.id, own))
    return {
        "prompts": len(names),
        "strict": each(map(all, kept.values())),
        "rules": bootstrap(kept.values()),
        "by_rule": {
            name: {"followed": sum(own for _, own in verdicts)} | by_group(verdicts)
            for name, verdicts in by_rule.items()
            if verdicts
        },
        "followed": kept,
    }


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as lines of text, without the single answers."""
    kept = report["followed"].values()
    whole = {"followed": sum(map(all, kept))} | report["strict"]
    single = {"followed": sum(map(sum, kept))} | report["rules"]
    for name, row in {"prompts": whole, "rules": single, **report["by_rule"]}.items():
        yield f"{name:<14} {row['followed']:>4} of {row['count']:>4} {shown(row, '{:6.1%} [{:.1%}, {:.1%}]')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the verifiable instructions that a model's answers follow.")
    parser.add_argument("--instructions", required=True, type=Path, help="JSON lines of {id, prompt, rules}")
    parser.add_argument("--answers", required=True, type=Path, help="JSON lines of {id, text}")
    given = parser.parse_args()
    instructions, answers = read_instructions(given.instructions), read_rows(given.answers, "text")
    try:
        report = verifiable_report(instructions, {name: row["text"] for name, (_, row) in answers.items()})
    except UserError as error:
        raise UserError(f"{given.answers}: {error}") from None
    print("\n".join(table(report)))


if __name__ == "__main__":
    command(main)
