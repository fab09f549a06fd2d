"""SFT examples as token ids for `dpo.sft`: labelled rows of the files that the config names, and of `prepare.eft`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from judging.rubric import comparison_text, evidence_text, judge_prompt, judgment_text, meta_judgment_text, meta_prompt
from model.chat import ChatFormat, load_chat
from stages.command import UserError
from stages.config import changed
from stages.records import Message, Record
from stages.rows import LABELLED, PROMPT, RESPONSES, Row, messages_of, one_of, read_rows
from stages.settings import Settings, VerdictPosition
from stages.stage import Job, Output, Stage


def labelled_rows(path: Path, fractions: bool = True) -> Iterator[Record]:
    """The labelled rows of a file: rows {kind, ...} unchanged; one row for each scored response to a prompt. Without
    `fractions` a judge's scores must be whole, since it can read no others."""
    for row in read_rows(path):
        for labelled in _labelled(row):
            if labelled["kind"] == "judge" and labelled["score"] % 1 and not fractions:
                wrong = f"score is {labelled['score']}"
                raise UserError(f"{row.where}: {wrong}; make it whole, or set judge.fractions = true")
            yield labelled


def _labelled(row: Row) -> Iterator[Record]:
    if "responses" not in row.content:
        yield row.checked(**LABELLED[row.value("kind", kind=one_of(*LABELLED))])
        return
    content = row.checked(prompt=PROMPT, responses=RESPONSES)
    for response in content["responses"]:
        judged = {"response": response["text"], "flaw": response.get("flaw", ""), "score": response["score"]}
        reason = evidence_text(response["evidence"])
        yield {"kind": "judge", "prompt": content["prompt"], **judged, "justification": reason}


def render(rows: Iterable[Record], chat: ChatFormat, settings: Settings) -> Iterator[Record]:
    """SFT examples {id, kind, flaw, prompt, completion, prompt_ids, completion_ids, token_weights} of labelled rows."""
    for number, row in enumerate(rows):
        messages, text = _texts(row, settings)
        ids = chat.completion_ids(text)
        if row["kind"] == "respond":
            ids = ids if row["finished"] else ids[:-1]  # a cut-off answer has no end token
            weights = [settings.sft.answer_weight] * len(ids)
        else:
            weights = [1.0] * len(ids)
            position = (settings.judge if row["kind"] == "judge" else settings.metajudge).verdict_position
            for i in decision_tokens(chat, text, position):
                weights[i] = settings.sft.verdict_token_weight
        example = {"id": f"{row['kind']}/{number:05}", "kind": row["kind"], "flaw": row.get("flaw", "")}
        example |= {"prompt": messages, "completion": text, "prompt_ids": chat.prompt_ids(messages)}
        yield example | {"completion_ids": ids, "token_weights": weights}


def _texts(row: Record, settings: Settings) -> tuple[list[Message], str]:
    """Prompt and completion of a labelled row."""
    judge, metajudge = settings.judge, settings.metajudge
    if row["kind"] == "respond":
        return messages_of(row["prompt"]), row["response"]
    if row["kind"] == "judge":
        messages = judge_prompt(row["prompt"], row["response"], judge.prompt_style, judge.verdict_position)
        return messages, judgment_text(row["score"], row["justification"], judge.verdict_position)
    own, position, hide = row["judgments"], metajudge.verdict_position, settings.guards.hide_scores
    texts = (judgment_text(j["score"], j["justification"], judge.verdict_position) for j in own)
    a, b = (j["justification"].strip() for j in own) if hide else texts
    messages = meta_prompt(row["prompt"], row["response"], a, b, metajudge.prompt_style, position)
    reason = comparison_text(row["score"], [] if hide else [judgment["score"] for judgment in own])
    return messages, meta_judgment_text(row["winner"], reason, position)


def decision_tokens(chat: ChatFormat, text: str, position: VerdictPosition) -> list[int]:
    """Indices of the tokens that decide: the verdict's value, and the deserved score in a meta-judge's reason."""
    end = len(text.split("\n")[0]) if position == "first" else len(text)
    spans = [(end - len(text[:end].split()[-1]), end)]
    spans += [match.span(1) for match in re.finditer(r"^Deserved: (\d)[;.]", text, flags=re.MULTILINE)]
    return [i for i, (low, high) in enumerate(chat.offsets(text)) if any(low < b and high > a for a, b in spans)]


def gather(job: Job) -> Output:
    """Write the SFT examples that the config asks for."""
    files = [*job.paths("examples"), *job.paths("labelled")]
    rows = (row for path in files for row in labelled_rows(path, job.settings.judge.fractions))
    examples = list(render(rows, load_chat(job.path("model")), job.settings))
    if not examples:
        given = ", ".join(map(str, files)) or "sft.examples is empty"
        raise UserError(f"{given}: no examples; name files in sft.examples or eft.sources, or set sft.enabled = false")
    counts = Counter(f"{e['kind']}.{e['flaw']}" for e in examples)
    tokens = sum(len(e["prompt_ids"]) + len(e["completion_ids"]) for e in examples)
    return Output({"examples.jsonl": examples}, {"counts": dict(sorted(counts.items())), "tokens": tokens})


def _settings(settings: Settings, iteration: int) -> Any:
    used = {
        "sft": [settings.sft.verdict_token_weight, settings.sft.answer_weight],
        "judge": [settings.judge.prompt_style, settings.judge.verdict_position],
        "metajudge": [settings.metajudge.prompt_style, settings.metajudge.verdict_position],
    }
    return used | changed(settings.guards, "hide_scores") | changed(settings.judge, "fractions")


EXAMPLES = Stage(
    "examples", "prepare.examples", gather, _settings, ("model",), ("labelled",), ("labelled",),
    files=lambda settings: {"examples": settings.sft.examples},
)  # fmt: skip

if __name__ == "__main__":
    EXAMPLES.main()
