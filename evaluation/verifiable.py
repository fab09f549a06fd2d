"""Instructions about form that code can check, after IFEval (Zhou et al., arXiv 2311.07911), for any model's answers.

`python -m evaluation.verifiable --instructions data/evaluation/verifiable.jsonl --answers FILE` prints how many prompts
had all their rules followed, how many rules were followed, and the same by rule. Intervals are over prompts.
Of IFEval's own file it prints IFEval's numbers (`evaluation/ifeval.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import ifeval
from evaluation.benchmarks import match
from evaluation.statistics import by_group, shown
from judging.rules import RULES, Rule, followed, rules_of
from stages.command import UserError, arguments, command
from stages.records import Prompt
from stages.rows import LIST, PROMPT, TEXT, Row, read_rows, rows_by_id


class Instruction(NamedTuple):
    id: str
    prompt: Prompt
    rules: tuple[Rule, ...]


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file of rows {id, prompt, rules: [{rule: NAME, PARAMETER: value}]}, in its order.

    Raises the errors of `rows_by_id`, and `UserError` for an unknown rule, and another parameter or value than its own.
    """
    instructions = []
    for name, (where, row) in rows_by_id(path, prompt=PROMPT, rules=LIST).items():
        if set(row) != {"id", "prompt", "rules"}:
            raise UserError(f"{where}: the keys are {', '.join(row)}; they must be id, prompt, and rules")
        instructions.append(Instruction(name, row["prompt"], rules_of(row, where)))
    return instructions


def verifiable_report(instructions: Sequence[Instruction], texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The share of answers with all rules followed ("strict"), of rules followed ("rules"), and by rule; by id, which
    rules each answer followed. Intervals are over prompts, each with its answers, `texts` by id. Raises `UserError`
    naming prompts without answers, and unknown ones.
    """
    names = [item.id for item in instructions]
    match(names, texts, "instructions")
    kept = {
        item.id: [[followed(rule, text) for rule in item.rules] for text in texts[item.id]] for item in instructions
    }
    verdicts = [
        (item.id, rule.name, is_followed)
        for item in instructions for answer in kept[item.id]
        for rule, is_followed in zip(item.rules, answer, strict=True)
    ]  # fmt: skip
    by_rule = {}
    for name in RULES:
        if own := [(prompt, is_followed) for prompt, rule, is_followed in verdicts if rule == name]:
            by_rule[name] = {"followed": sum(is_followed for _, is_followed in own)} | by_group(own)
    strict = by_group((name, all(answer)) for name, answers in kept.items() for answer in answers)
    rules = by_group((name, is_followed) for name, _, is_followed in verdicts)
    return {"prompts": len(names), "strict": strict, "rules": rules, "by_rule": by_rule, "followed": kept}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    kept = [answer for answers in report["followed"].values() for answer in answers]
    rows = {"prompts": {"followed": sum(map(all, kept))} | report["strict"]}
    rows["rules"] = {"followed": sum(map(sum, kept))} | report["rules"]
    for name, row in (rows | report["by_rule"]).items():
        yield f"{name:<14} {row['followed']:>4} of {row['count']:>4} {shown(row, '{:6.1%} [{:.1%}, {:.1%}]')}"


def main() -> None:
    given = arguments(__doc__, "instructions", "answers")
    if "instruction_id_list" in next(read_rows(given.instructions), Row("", {})).content:
        prompts = ifeval.read_prompts(given.instructions)
        print("\n".join(ifeval.table(ifeval.ifeval_report(prompts, ifeval.read_answers(given.answers, prompts)))))
        return
    instructions, answers = read_instructions(given.instructions), rows_by_id(given.answers, text=TEXT)
    match([item.id for item in instructions], answers, "instructions", f"{given.answers}: ")
    report = verifiable_report(instructions, {name: [row["text"]] for name, (_, row) in answers.items()})
    print("\n".join(table(report)))


if __name__ == "__main__":
    command(main)
