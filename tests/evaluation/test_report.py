"""The report of runs that are made by hand through the real pairs stage and the real panel."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import MODELS, PLANTED, PROMPTS, made_run
from matplotlib.figure import Figure
from processes import ROOT
from questions import refused
from records import CHAT

import judging.pairs
from evaluation.report import write_report
from evaluation.report.__main__ import main
from evaluation.report.page import shown_prompts
from evaluation.report.plots import PLOTS, ReportedIteration, ReportedRun, plots
from evaluation.summary import cells, notes
from judging.scores import EXPLANATIONS
from judging.trace import read_lineage
from stages.files import digest, read_jsonl, write_manifest, write_sealed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two iterations; its name holds what HTML would read as markup, and matplotlib as a formula."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
        return made_run(folder / "a<b>&c $\\frac$", True, False)


class Page(HTMLParser):
    """A page's elements, as (tag, attributes), and the text of each, blanks alike."""

    def __init__(self, *runs: Path, out: Path):
        super().__init__()
        write_report(runs, out)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(out.read_text())
        self.text = " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    @property
    def data(self) -> list[dict]:
        return json.loads(next(text for tag, text in self.texts if tag == "script"))


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page(made, out=made / "report.html")


def test_the_page_asks_for_nothing_and_hostile_texts_are_text(page, made):
    names = [tag for tag, _ in page.elements]
    assert names.count("script") == 2 and "link" not in names and "iframe" not in names
    sources = [value for _, known in page.elements for name, value in known.items() if name in ("src", "href")]
    assert len(sources) > 5 and all(source.startswith(("#", "data:image/svg+xml")) for source in sources)
    policy = next(known["content"] for tag, known in page.elements if "http-equiv" in known)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert ("h1", made.name) in page.texts
    source = (made / "report.html").read_text()
    assert "<script>window" not in source and 'onerror="window' not in source and "a<b>" not in source
    assert PLANTED in json.dumps(page.data[0]["prompts"][0][1]).replace('\\"', '"')


def test_the_browser_has_every_pair_and_every_prompt_without_one(page, made):
    kinds = {}
    for folder in (made / "iter1", made / "iter2"):
        for kind in ("actor", "judge"):
            kinds |= {row["id"]: f"{kind} pair" for row in read_jsonl(folder / f"pairs/{kind}.jsonl")}
        for row in read_jsonl(folder / "pairs/none.jsonl"):
            kinds[f"none/{row['kind']}/{row['prompt_id']}"] = f"no {row['kind']} pair: {EXPLANATIONS[row['reason']]}"
    prompts = [prompt for iteration in page.data for prompt in iteration["prompts"]]
    assert {name: kind for prompt in prompts for name, kind, _ in prompt[2]} == kinds
    assert len(prompts) == 2 * PROMPTS and len(kinds) == 3 * PROMPTS
    # Behind a judge pair stand all its texts.
    pair = next(read_jsonl(made / "iter1/pairs/judge.jsonl"))
    _, _, entries, responses, comparisons = next(p for p in page.data[0]["prompts"] if p[0] == pair["prompt_id"])
    assert [pair["id"], "judge pair", f"Elo {pair['chosen_elo']:.2f} over {pair['rejected_elo']:.2f}"] in entries
    judgments = [judgment for response in responses for judgment in response[3]]
    parts = {row[2]: row[1] for row in judgments if row[2]}
    assert parts == {part: pair[part][0]["content"] for part in ("chosen", "rejected")}
    for name, shown in (("responses", responses), ("judgments", judgments), ("comparisons", comparisons)):
        rows = read_jsonl(made / f"iter1/{name}/shards/0.jsonl")
        assert [row[1] for row in shown] == [row["text"] for row in rows if row["prompt_id"] == pair["prompt_id"]]
    assert f"{pair['chosen_id']} (chosen)" in next(row[0] for row in judgments if row[2] == "chosen")


def test_texts_are_cut_to_the_budget_and_say_so(made):
    documents = list(read_lineage(made, 1)[1].values())
    cut = shown_prompts(documents, PROMPTS * 6 * 150)  # prompts, and responses and judgments of pairs
    assert max(len(row[1]) for prompt in cut for row in prompt[3] if row[2]) < 120
    assert "more characters]" in json.dumps(cut)
    judgments = [own for prompt in cut for row in prompt[3] for own in row[3]]
    assert {(bool(own[2]), own[1] is None) for own in judgments} == {(True, False), (False, True)}  # a pair's stay


def test_every_plot_and_the_terminals_table(page):
    assert [known["alt"] for tag, known in page.elements if tag == "img"] == [*PLOTS]
    assert " ".join(cell for row in cells(MODELS) for cell in row) in page.text
    assert all(" ".join(line.split()) in page.text for line in notes(MODELS))


def test_plots_worked_by_hand():
    pairs = {"actor": {"pairs": 2, "reasons": {"equal_scores": 1}, "chosen_characters_mean": 8}}
    judges = {"judge": {"score_histogram": {"1": 1, "5": 3}}, "metajudge": {"elo_standard_error_mean": 0.5}}
    first, second = judges | {"pairs": pairs, "responses": {"characters_mean": 9}}, {"first_wins": {"value": 0.7}}
    step = {"split": "train", "loss": 1, "reward_chosen": 1, "reward_rejected": -1}
    steps = [step, step | {"split": "x", "loss": 2}]
    panels = enumerate((first, {"metajudge": second}), 1)
    iterations = [ReportedIteration(t, {"bias": panel}, metrics=steps) for t, panel in panels]
    iterations[0].scored, iterations[0].elo = [(i, float(i > 5)) for i in range(10)], [0.0, 1.0]
    run, axes = ReportedRun("r", Path(), {}, iterations), {title: Figure().subplots() for title in PLOTS}
    for title, (_, draw) in PLOTS.items():
        draw(axes[title], run)
    lines = {title: [line.get_xydata().tolist() for line in own.lines] for title, own in axes.items() if own.lines}
    assert lines == {
        "Scores": [[[1, 0.25], [5, 0.75]]],
        "Lengths": [[[1, 9]], [[1, 8]]],
        "Score by length": [[[2, 0], [7, 0.8]]],
        "What wins a comparison": [[[2, 0.7]]],
        "Loss": [[[0, 1]], [[1, 1]]],
        "Rewards": [[[0, 1]], [[0, -1]], [[1, 1]], [[1, -1]]],
    }
    assert max(axes["Elo"].patches[0].get_xy()[:, 1]) == 0.5
    assert [(bar.get_x(), bar.get_width()) for bar in axes["Actor pairs"].patches] == [(0, 2), (2, 1)]
    assert plots([run]) == plots([run])  # the same run gives the same bytes


def test_runs_side_by_side_and_what_was_deleted(made, tmp_path):
    """Two runs of one name, the second without some of its files; and one without iterations, plots and pairs."""
    run, sft = tmp_path / made.name, made_run(tmp_path / "sft-only", models=MODELS[:2])
    shutil.copytree(made, run)
    shutil.rmtree(run / "iter1" / "responses")
    shutil.rmtree(run / "iter2" / "train")
    write_manifest(run / "evaluation/M2/judge", "test", "key", [], seconds=40, new_tokens=5000)
    kept = run / "iter1" / "train" / "metrics.jsonl"
    write_manifest(run / "iter1" / "checkpoint", "dpo", "key", [], metrics=digest(kept))
    kept.write_text(kept.read_text().replace("0.7", "0.6", 1))
    both = Page(made, run, out=tmp_path / "both.html")
    shown = [iteration["name"] for iteration in both.data]
    assert shown == [f"{made}, iteration 1", f"{made}, iteration 2", f"{run}, iteration 2"]
    assert both.text.count("model wins* verifiable") == 2 and "Summary of " + str(run) in both.text
    assert "evaluation/M2/judge 40.0 5,000 125" in both.text
    assert f"no pairs, Elo scores and scores by length of iteration 1: {run}/iter1/responses: no such" in both.text
    assert f"no training curves of iteration 2: {run}/iter2/train/metrics.jsonl: no such file" in both.text
    assert f"no training curves of iteration 1: {kept}: not as the training wrote it" in both.text
    alone = Page(sft, out=tmp_path / "one.html")
    assert "No iteration is finished yet" in alone.text and "script" not in [tag for tag, _ in alone.elements]


def test_a_run_without_what_the_report_is_made_from(made, tmp_path, monkeypatch):
    with refused(r"summary\.json: no such file; name a run's folder, or let iterate\.py"):
        write_report([tmp_path], tmp_path / "report.html")
    (tmp_path / "summary.json").write_text((made / "summary.json").read_text().replace("0.5", "0.6", 1))
    with refused(r"/summary\.json: damaged, or of an older version; .* let iterate\.py"):
        write_report([tmp_path], tmp_path / "report.html")
    write_sealed(tmp_path / "summary.json", {})
    with refused(r"/summary\.json: of another version \('.*' is missing\); `make iterate`"):
        write_report([tmp_path], tmp_path / "report.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("evaluation.report.")]:
        monkeypatch.delitem(sys.modules, name)
    with refused(r"the report needs matplotlib: pip install '\.\[report\]'"):
        write_report([made], tmp_path / "report.html")


def test_the_command_names_folders_or_a_config(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other"):
        made_run(tmp_path / "runs" / name)
    one, both = ["--config", ROOT / "configs" / "tiny.toml"], ["runs/tiny", "runs/other"]
    for words, out in ((one, "runs/tiny/report.html"), (both, "runs/report.html")):
        assert call(main, *words).out.startswith(f"{out}: ") and (tmp_path / out).is_file()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_script_shows_pairs_and_searches(page, made, tmp_path):
    def opened(address: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
        url = f"{(made / 'report.html').as_uri()}#{address}"
        return subprocess.run([CHROMIUM, *options, url], capture_output=True, text=True, timeout=120).stdout

    article = re.search(r"<article.*?</article>", opened("actor/t10000"), re.DOTALL)[0]
    assert article.count("&lt;script&gt;window.pwned=1") >= 3 and "<script" not in article and "<img" not in article
    assert re.search(r"trace '.*a&lt;b&gt;&amp;c \$\\frac\$' actor/t10000</code>", article)
    found = opened("pwned%20actor/t1")
    assert f">2 of {3 * PROMPTS}<" in found and ">actor/t10000</b>" in found
