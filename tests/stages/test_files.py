"""stages/files.py: atomic writes, errors that name file and line, keys and digests that follow content."""

import errno

import pytest

from stages import files
from stages.command import UserError, command
from stages.files import digest, read_jsonl, write_atomic


def test_jsonl_round_trip_and_errors(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": 1, "text": "zwei\nZeilen, ü {x}"}, {"id": 2}]
    files.write_jsonl(path, rows)
    assert list(read_jsonl(path, ("id",))) == rows
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: key 'text' is missing"):
        list(read_jsonl(path, ("text",)))
    path.write_text('{"id": 1}\n\n[1]\n')
    with pytest.raises(UserError, match="line 3: expected a JSON object"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match=r"disk full.*file"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_manifest_marks_a_stage_complete(tmp_path):
    output, digests = tmp_path / "out.jsonl", set()
    assert not files.is_complete(tmp_path, "k")
    for text in ("{}\n", "{} \n"):
        output.write_text(text)
        files.write_manifest(tmp_path, "pairs", "k", [output], counts={"pairs": 1})
        digests.add(digest(tmp_path))
    assert files.is_complete(tmp_path, "k") and not files.is_complete(tmp_path, "other") and len(digests) == 2
    assert files.read_json(tmp_path / "manifest.json")["stage"] == "pairs"


@pytest.mark.parametrize(("error", "code"), [(UserError("what, where, what to do"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(error, code, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        command(main)
    assert raised.value.code == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_digest_of_a_folder_leaves_out_hidden_files(tmp_path):
    """A second download of the same model changes the times in the download tool's notes."""
    (tmp_path / "config.json").write_text("{}")
    before = digest(tmp_path)
    for name, counts in ((".cache/config.json.metadata", False), (".torn.tmp", False), ("original/params.json", True)):
        write_atomic(tmp_path / name, "{}")
        assert (digest(tmp_path) != before) == counts, name
