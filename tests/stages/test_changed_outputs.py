"""Finished outputs that have changed: an output counts by its content, not by its key alone. The command that made it
makes it again to the byte; a stage run alone names the file, and the stage to repeat."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import iterate, run

from evaluation.measure import MEASURE
from judging.expected import SCORE
from judging.judge import JUDGE
from judging.metajudge import METAJUDGE
from judging.pairs import PAIRS
from stages.command import UserError
from stages.files import digest, is_complete, read_shards, write_json, write_jsonl, write_manifest
from stages.settings import load_settings

ROWS = [{"id": f"r{i}", "text": f"text {i}"} for i in range(9)]


def edit(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    """With one bit changed, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


dropped = edit(lambda content: b"".join(content.splitlines(keepends=True)[1:]))
doubled = edit(lambda content: content + content.splitlines(keepends=True)[0])
reworded = edit(lambda content: content.replace(b"e", b"i", 1))
emptied, flip, truncated = edit(lambda content: b""), edit(flipped), edit(lambda content: content[: len(content) // 2])
DAMAGE = {"dropped": dropped, "doubled": doubled, "reworded": reworded, "emptied": emptied, "flipped": flip}
DAMAGE |= {"truncated": truncated, "deleted": Path.unlink}


@pytest.fixture
def output(tmp_path) -> Path:
    """The output of a stage with two shards, whose second stands in the folder of a part of the work."""
    for folder, name in ((tmp_path / "out", "judge"), (tmp_path / "out" / "part", "score")):
        write_jsonl(folder / "shards" / "0.jsonl", ROWS)
        write_manifest(folder, name, "key", [folder / "shards" / "0.jsonl"], shards=["shards/0.jsonl"])
    return tmp_path / "out"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["", "part"])
def test_a_changed_file_is_named_and_goes(output, capsys, damage, part):
    assert is_complete(output, "key") and list(read_shards(output / part)) == ROWS
    file, other = (output / name / "shards" / "0.jsonl" for name in (part, "" if part else "part"))
    DAMAGE[damage](file)
    for read in (digest, lambda folder: list(read_shards(folder))):
        stage = "score" if part else "judge"
        with pytest.raises(UserError, match=f"^{file}: not as the stage '{stage}' wrote it; repeat that stage"):
            read(output / part)
    assert not is_complete(output, "key") and f"{file}: not as it was written" in capsys.readouterr().err
    assert not file.exists() and other.exists()
    whole = [] if part else [output / "part" / "manifest.json"]  # of a part in which nothing has changed
    assert list(output.rglob("manifest.json")) == whole


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "key"', r'{"key": "\ud83d"}', "[" * 5000, None], ids=str)
def test_a_damaged_manifest_is_none(output, content):
    path = output / "manifest.json"
    text = path.read_text()
    path.write_bytes((text.replace('"judge"', '"jury"') if content is None else content).encode("utf-8", "replace"))
    for read in (digest, lambda folder: list(read_shards(folder))):
        with pytest.raises(UserError, match=f"^{path}: .*; repeat the stage that writes it$"):
            read(output)
    assert not is_complete(output, "key") and not path.exists()


def test_a_file_of_an_output_is_checked_as_an_input(tmp_path):
    """Like pairs/actor.jsonl, which a training reads; its neighbours are not its business."""
    actor, judge = tmp_path / "actor.jsonl", tmp_path / "judge.jsonl"
    for path in (actor, judge):
        write_jsonl(path, ROWS)
    write_manifest(tmp_path, "pairs", "key", [actor, judge])
    emptied(actor)
    assert len(digest(judge)) == 64
    with pytest.raises(UserError, match=f"^{actor}: not as the stage 'pairs' wrote it; repeat that stage"):
        digest(actor)


def test_a_folder_without_shards_is_no_input_of_rows(tmp_path):
    write_json(tmp_path / "report.json", {})
    write_manifest(tmp_path, "measure", "key", [tmp_path / "report.json"])
    with pytest.raises(UserError, match=r"not a finished stage \(no manifest\.json with shards\)"):
        read_shards(tmp_path)


MADE_FROM = {"judgments": "responses", "scores": "responses", "comparisons": "judgments", "against": "prompts"}
MIXED = [(PAIRS, "judgments"), (PAIRS, "scores"), (PAIRS, "comparisons"), (METAJUDGE, "judgments")]
MIXED += [(METAJUDGE, "scores"), (JUDGE, "scores"), (SCORE, "judgments"), (MEASURE, "against")]


@pytest.mark.parametrize(("stage", "name"), MIXED, ids=lambda value: getattr(value, "name", value))
def test_inputs_of_two_runs_are_refused(tmp_path, stage, name):
    """Ids are equal in every run, so only the digests tell. Models may differ, as a meta-judge's from the judge."""
    settings, other = load_settings(Path(__file__).parents[2] / "configs" / "tiny.toml"), MADE_FROM[name]
    for letter in ("a", "b"):
        folder = tmp_path / letter
        for source in {"prompts", "responses", "judgments", other} - {name}:
            write_jsonl(folder / source / "0.jsonl", [{"id": "p1/r0", "text": f"of {letter}"}])
        sources = {other: {"digest": digest(folder / other)}, "model": {"digest": letter}}
        write_jsonl(folder / name / "0.jsonl", ROWS)
        write_manifest(folder / name, "any", "key", [folder / name / "0.jsonl"], inputs=sources)
    place = tmp_path / "a"
    given = {"model": place / "prompts", "responses": place / "responses", other: place / other}
    given = {key: path for key, path in given.items() if key in (*stage.inputs, *stage.optional)}
    stage.job(settings, tmp_path / "out", 1, **given, **{name: place / name})
    foreign = tmp_path / "b" / name
    with pytest.raises(UserError, match=rf"^{foreign}: made from other {other} than {place / other}; name folders of"):
        stage.job(settings, tmp_path / "out", 1, **given, **{name: foreign})


RUN = {
    "models/sft/*/checkpoint/model.safetensors": flip,
    "runs/tiny/iter1/responses/shards-*/00000.jsonl": dropped,
    "runs/tiny/iter1/judgments/shards-*/00001.jsonl": reworded,
    "runs/tiny/iter2/judgments/shards-*/00000.jsonl": emptied,
    "runs/tiny/iter1/comparisons/meta_judged.jsonl": doubled,
    "runs/tiny/iter1/pairs/actor.jsonl": emptied,
    "runs/tiny/iter1/checkpoint/model.safetensors": flip,
    "runs/tiny/iter2/checkpoint/model.safetensors": truncated,
    "runs/tiny/iter2/responses/manifest.json": emptied,
    "runs/tiny/evaluation/M1/actor/answers/shards-*/00000.jsonl": reworded,
    "runs/tiny/evaluation/seed/judge/agreement.json": flip,
}


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a run whose content its inputs decide."""
    patterns = ("*.jsonl", "*.safetensors", "agreement.json", "tokenizer.json")
    files = (path for pattern in patterns for path in folder.rglob(pattern) if path.name != "metrics.jsonl")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_the_same_command_makes_what_has_changed_again_to_the_byte(tiny_run, tmp_path):
    place = Path(shutil.copytree(tiny_run, tmp_path / "project", symlinks=True))
    whole = contents(place)
    assert len(whole) > 30
    for pattern, damage in RUN.items():
        [path] = place.glob(pattern)
        damage(path)
    words = ("--config", "tiny.toml", "--iteration", "1", "--model", "models/tiny", "--out", "alone")
    code, _, err = run(place, "-m", "judging.judge", *words, "--responses", "runs/tiny/iter1/responses")
    assert code == 2 and "not as the stage 'respond' wrote it; repeat that stage" in err and err.count("\n") == 1
    code, _, err = iterate(place)
    assert code == 0, err
    assert contents(place) == whole
    told = (place / "runs" / "tiny" / "summary.json").read_bytes()
    first, second = (place / "runs" / "tiny" / f"iter{t}" / "train" / "metrics.jsonl" for t in (1, 2))
    first.unlink()
    edit(lambda content: content.replace(b'"loss": 0', b'"loss": 9'))(second)
    code, out, err = iterate(place)
    assert code == 0 and out.count("->") == 0, err
    assert (place / "runs" / "tiny" / "summary.json").read_bytes() == told, "the checkpoint's manifest has the figures"
