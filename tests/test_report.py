"""The report of runs that are made by hand through the real pairs stage and the real panel, read in Chromium."""

import base64
import json
import random
import re
import sys
import zlib
from pathlib import Path

import chromium
import pytest
from test_pairs import CHAT

import evaluation.report.browser
import judging.pairs
from evaluation.bias import write_panel
from evaluation.report import main, write_report
from evaluation.report.browser import pack, read_evidence
from evaluation.report.page import MOST
from files import UserError, read_jsonl, read_manifest, write_json, write_jsonl, write_manifest
from judging.pairs import Sources, write_pairs
from judging.scores import distinct_responses, group_by, meta_judged, seeded_draw
from settings import Iteration, Judge, Model, Respond, Settings

PLANTED = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script><!-- {{ 7 * 7 }}'
PROMPTS = 45
needs_chromium = pytest.mark.skipif(not chromium.found(), reason=f"no Chromium here: none of {chromium.PROGRAMS}")

COMMON = {"ids": [3, 4], "finish_reason": "stop", "logprob": -1.0, "seed": 1}
SCORES = [*range(6), None]
STEP = {"epoch": 1, "split": "train", "margin": 0.1, "grad_norm": 1.0, "reward_chosen": 0.1, "reward_rejected": -0.1}
ROW = {
    "rho": 0.0,
    "dpo": {"loss": 0.5, "accuracy": 0.75, "margin": 0.2, "held_out": True},
    "agreement": None,
    "meta_agreement": None,
    "seconds": {"respond": 10.0, "judge": 20.0, "pairs": 0.1, "train": 5.0},
    "new_tokens": {"respond": 1000, "judge": 4000},
}


class Maker:
    """A run's folder with as many prompts, responses and judgments as asked, of random words."""

    def __init__(self, folder: Path, prompts: int, K: int, N: int, lengths: tuple[int, int, int], seed: int = 0):
        self.folder, self.prompts, self.K, self.N, self.lengths = folder, prompts, K, N, lengths
        self.random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["".join(self.random.choices(letters, k=self.random.randint(2, 9))) for _ in range(4000)]
        self.words = " ".join(self.random.choices(words, k=200_000))
        self.model = folder.parent / "model"
        self.model.mkdir(parents=True, exist_ok=True)
        (self.model / "tokenizer.json").write_text("{}")

    def text(self, length: int) -> str:
        start = self.random.randrange(len(self.words) - 2 * length)
        return self.words[start : start + self.random.randint(length // 2, 3 * length // 2)]

    def stage(self, path: Path, rows: list[dict]) -> Path:
        write_jsonl(path / "units" / "0.jsonl", rows)
        facts = {"units": ["units/0.jsonl"], "counts": {"records": len(rows)}, "weights": "w"}
        write_manifest(path, "test", "key", [path / "units" / "0.jsonl"], **facts)
        return path

    def iteration(self, number: int, judge_pairs: bool = True, planted: bool = True) -> dict:
        """Writes an iteration; returns its row of the summary. The last prompt's scores are all equal."""
        folder = self.folder / f"iter{number}"
        prompts = [{"id": f"t{number}{i:04}", "prompt": self.text(self.lengths[0])} for i in range(self.prompts)]
        if planted:
            prompts[0]["prompt"] = f"{PLANTED} zebra"
        responses = [
            COMMON | {"id": f"{row['id']}/r{k}", "prompt_id": row["id"], "sample": k, "prompt": row["prompt"],
                      "text": f"{PLANTED} {k}" if planted and i == 0 else self.text(self.lengths[1])}
            for i, row in enumerate(prompts) for k in range(self.K)
        ]  # fmt: skip
        judgments = [
            judgment
            for row in responses
            for judgment in self.judgments(row, planted, [3] if row["prompt_id"] == prompts[-1]["id"] else SCORES)
        ]
        write_jsonl(folder / "prompts.jsonl", prompts)
        sources = Sources(
            self.stage(folder / "responses", responses),
            self.stage(folder / "judgments", judgments),
            comparisons=self.stage(folder / "comparisons", [*self.comparisons(number, responses, judgments)])
            if judge_pairs
            else None,
        )
        settings = Settings(
            name="made",
            model=Model(path="m"),
            respond=Respond(prompts="p", prompts_per_iteration=self.prompts, K=self.K),
            judge=Judge(N=self.N),
            iteration=[Iteration(judge_pairs=judge_pairs)] * number,
        )
        write_pairs(settings, number, self.model, sources, folder / "pairs")
        panel = write_panel(folder / "bias.json", number, settings, sources, folder / "pairs")
        write_jsonl(folder / "train" / "metrics.jsonl", [STEP | {"step": i, "loss": 0.7 - i / 50} for i in range(10)])
        counts = read_manifest(folder / "pairs")["counts"]
        return ROW | {
            "iteration": number,
            "pairs": {"actor": counts["actor"], "judge": counts.get("judge", 0)},
            "bias": panel,
        }

    def judgments(self, response: dict, planted: bool, scores: list) -> list[dict]:
        known = {"response_id": response["id"], "prompt_id": response["prompt_id"]}
        rows = []
        for n in range(self.N):
            score = self.random.choice(scores)
            text = f"{self.text(self.lengths[2])} {PLANTED if planted else ''}\nScore: {score}"
            failure = "missing" if score is None else None
            rows.append(
                COMMON
                | known
                | {"id": f"{response['id']}/j{n}", "index": n, "text": text, "score": score, "failure": failure}
            )
        return rows

    def comparisons(self, number: int, responses: list[dict], judgments: list[dict]):
        """Those of a meta-judge who likes the first shown, and the higher score."""
        by_response, draw = group_by(judgments, "response_id"), seeded_draw(0, number)
        for own in group_by(distinct_responses(responses), "prompt_id").values():
            response, distinct = meta_judged(own, by_response, draw)
            for a in distinct:
                for b in distinct:
                    if a is b:
                        continue
                    gap, name = a["score"] - b["score"], f"{response['id']}/m{a['index']}-{b['index']}"
                    winner = self.random.choices(["first", "second", None], [3 + max(gap, 0), 2 + max(-gap, 0), 1])[0]
                    yield COMMON | {
                        "id": name, "response_id": response["id"], "prompt_id": response["prompt_id"],
                        "first": a["index"], "second": b["index"], "winner": winner,
                        "failure": None if winner else "malformed",
                        "text": f"{self.text(self.lengths[2])}\nWinner: {winner}",
                    }  # fmt: skip

    def run(self, *iterations: dict, models: list[dict] | None = None) -> Path:
        sft = {"agreement_before": None, "agreement": None, "meta_agreement": None}
        summary = {"name": "made", "seed": 1, "model": "models/seed", "sft": sft, "iterations": list(iterations)}
        write_json(self.folder / "summary.json", summary | ({"models": models} if models else {}))
        return self.folder


def measured(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 100}


MODELS = [
    {"name": name, "verifiable": measured(0.4 + i / 20), "win_rate": measured(0.5 + i / 20) if i else None,
     "win_rate_by": "M2" if i else None, "win_rate_way": "scores",
     "win_rate_consistency": None,
     "characters": {"value": 1500.0 + 10 * i, "low": 1400.0, "high": 1600.0, "count": 100},
     "agreement": measured(0.7), "longer_wins": measured(0.51), "spearman": measured(0.5),
     "differences": {"verifiable": measured(i / 20)} if i > 1 else {}}
    for i, name in enumerate(("seed", "M0", "M1", "M2"))
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two iterations; its name holds what HTML would read as markup."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
        maker = Maker(folder / "a<b>&c", PROMPTS, K=3, N=4, lengths=(60, 200, 80))
        return maker.run(maker.iteration(1), maker.iteration(2, judge_pairs=False), models=MODELS)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """A browser with the report open."""
    out = made / "report.html"
    write_report([made], out)
    with chromium.Browser(tmp_path_factory.mktemp("chromium")) as browser:
        browser.url = out.as_uri()
        browser.size(1280, 900)
        browser.open(browser.url)
        yield browser
        assert browser.complaints == []
        assert set(browser.requests) <= {browser.url, "about:blank"}


def choose(page, kind: str) -> None:
    page.evaluate(
        f"(select => {{select.value = {json.dumps(kind)}; select.dispatchEvent(new Event('change'))}})"
        "(document.getElementById('kind'))"
    )


def shown(page, words: str, kind: str) -> set[str]:
    """The ids in the list after these words were typed into the search box."""
    choose(page, kind)
    page.evaluate("document.getElementById('search').focus(), document.getElementById('search').select()")
    page.call("Input.insertText", text=words)
    assert page.evaluate("document.getElementById('pager').hidden")  # all of them are on one page
    return set(page.evaluate("[...document.querySelectorAll('#entries .id')].map(node => node.textContent)"))


def all_pairs(run: Path) -> list[dict]:
    kinds = [path for name in ("actor", "judge") for path in sorted(run.glob(f"iter*/pairs/{name}.jsonl"))]
    return [row for path in kinds for row in read_jsonl(path)]


@needs_chromium
def test_the_search_finds_the_pairs_that_have_all_words(page, made):
    prompts = {row["id"]: row["prompt"] for t in (1, 2) for row in read_jsonl(made / f"iter{t}" / "prompts.jsonl")}
    pairs = all_pairs(made)
    content = {
        row["id"]: "\n".join(
            [row["id"], prompts[row["id"].split("/")[1]], row["chosen"][0]["content"], row["rejected"][0]["content"]]
        ).lower()
        for row in pairs
    }
    word = pairs[7]["chosen"][0]["content"].split()[3]
    found = 0
    for words in (word, f"{word[:3]} {pairs[7]['id'][-3:].upper()}", "zebra window.pwned", "nothing-has-this"):
        expected = {name for name, text in content.items() if all(part in text for part in words.lower().split())}
        assert shown(page, words, "actor") | shown(page, words, "judge") == expected
        found += len(expected)
    assert found >= 5


@needs_chromium
def test_filters_count_what_the_files_hold(page, made):
    page.open(page.url)
    options = page.evaluate("[...document.getElementById('kind').options].map(option => [option.value, option.text])")
    assert {value for value, _ in options} >= {"actor", "judge", "none/actor", "none/actor/equal_scores"}
    none = [row for path in made.glob("iter*/pairs/none.jsonl") for row in read_jsonl(path)]
    for value, text in options[1:]:
        _, *kind = value.split("/")
        if kind:
            count = sum([row["kind"], row["reason"]][: len(kind)] == kind for row in none)
        else:
            count = sum(row["kind"] == value for row in all_pairs(made))
        assert text.endswith(f"({count})")
        choose(page, value)
        assert page.evaluate("document.getElementById('count').textContent") == f"{count} of {3 * PROMPTS}"


@needs_chromium
def test_a_script_in_a_models_text_is_text(page, made):
    page.open(f"{page.url}#actor/t10000")
    text = page.evaluate("document.querySelector('#pair').textContent")
    assert text.count("<script>window.pwned=1</script><img src=x") >= 3 and "{{ 7 * 7 }}" in text
    page.evaluate("document.querySelectorAll('#pair details').forEach(node => node.open = true)")
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.evaluate("document.querySelectorAll('#pair script, #pair img, main script').length") == 0
    assert page.evaluate("document.querySelector('h1').textContent") == "a<b>&c"
    source = (made / "report.html").read_text()
    assert "window.pwned" not in source and "a<b>" not in source


@needs_chromium
def test_a_link_opens_its_pair_with_all_that_is_behind_it(page, made):
    pair = next(row for row in all_pairs(made) if row["kind"] == "judge")
    page.open(f"{page.url}#{pair['id']}")
    assert page.evaluate("document.querySelector('#pair h3').textContent") == pair["id"]
    texts = page.evaluate("[...document.querySelectorAll('#pair .text')].map(node => node.textContent)")
    judgments, comparisons = (
        [r for r in read_jsonl(made / "iter1" / name / "units/0.jsonl") if r["response_id"] == pair["response_id"]]
        for name in ("judgments", "comparisons")
    )
    wanted = [pair["chosen"][0]["content"], pair["rejected"][0]["content"]]
    wanted += [row["text"] for row in judgments + comparisons]
    assert set(wanted) <= set(texts) and len(texts) == len(wanted) + 2  # and the prompt, and the response
    won = page.evaluate("[...document.querySelectorAll('#pair .matrix td')].map(cell => cell.textContent)").count("1")
    assert won == sum(row["winner"] == "first" for row in comparisons)
    page.evaluate("document.querySelector('#entries a:not([aria-current])').click()")
    page.wait(f"document.querySelector('#pair h3').textContent !== {json.dumps(pair['id'])}")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_page_wide_scrolling_and_hides_the_list_while_a_pair_is_read(page, dark):
    page.size(375, 800, dark)
    for place in ("", "#actor/t10000", "#none/actor/t10044"):
        page.open(page.url + place)
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        listed = page.evaluate("getComputedStyle(document.getElementById('list')).display")
        assert (listed == "none") == bool(place)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) == dark
    page.size(1280, 900)


@needs_chromium
def test_runs_side_by_side(made, tmp_path):
    out = tmp_path / "both.html"
    write_report([made, made], out)
    with chromium.Browser(tmp_path / "chromium") as browser:
        browser.open(out.as_uri())
        assert browser.evaluate("document.querySelectorAll('table.models tbody').length") == 2
        assert browser.evaluate("document.querySelectorAll('table.models tbody tr').length") == 2 * (1 + len(MODELS))
        names = browser.evaluate("[...document.getElementById('run').options].map(option => option.text)")
        assert names == ["All", str(made), str(made)]
        assert browser.evaluate("document.getElementById('count').textContent") == f"{6 * PROMPTS} of {6 * PROMPTS}"
        swatches = browser.evaluate("[...document.querySelectorAll('.card i.swatch')].map(node => node.className)")
        assert set(swatches) == {"swatch c1", "swatch c2"}
        assert browser.complaints == []


def test_the_table_says_who_judged_and_what_is_against_the_seed(made):
    write_report([made], made / "report.html")
    source = (made / "report.html").read_text()
    table = re.search(r'<table class="models">.*?</table>', source, re.DOTALL)[0]
    last = [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td>.*?</td>", table.split(">M2<")[1])
    ]
    assert last[0] == "65.0% 60.0 to 70.0 by M2, by mean scores"
    assert last[1] == "55.0% 50.0 to 60.0 +15.0 [+10.0, +20.0]"
    assert last[-1] == f"{len([*read_jsonl(made / 'iter2/pairs/actor.jsonl')])}, 0"
    assert "self-judged" in table


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    for name in ("one", "two"):
        write_report([made], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def inflated(text: str):
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_texts_are_cut_to_the_budget_and_say_so(made, monkeypatch):
    evidence = read_evidence(made / "iter1")
    monkeypatch.setattr(evaluation.report.browser, "TEXT_BUDGET", PROMPTS * 6 * 60)
    monkeypatch.setattr(evaluation.report.browser, "JUDGMENT_BUDGET", 10)
    packed = pack([[(1, evidence)]])
    assert packed["limits"] == {"text": 60, "judgment": 60}
    rows = [row for chunk in packed["texts"] for row in inflated(chunk)]
    for prompt, row in zip(evidence.prompts.values(), rows, strict=True):
        for (_, known), (_, characters, _, text) in zip(prompt.responses.items(), row["responses"], strict=True):
            whole = known["text"]
            assert characters == known["characters"]
            assert text == (whole if whole is None or len(whole) <= 60 else [whole[:60], len(whole)])


def test_a_run_without_what_the_report_is_made_from(made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"summary\.json: no such file; name a run's folder, or let iterate\.py"):
        write_report([tmp_path], tmp_path / "report.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("evaluation.report.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"the report needs matplotlib: pip install '\.\[report\]'"):
        write_report([made], tmp_path / "report.html")


def test_the_command_names_folders_or_a_config(tmp_path, monkeypatch, capsys):
    config = Path(__file__).parents[1] / "configs" / "tiny.toml"
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other"):
        Maker(tmp_path / "runs" / name, 1, 1, 1, (1, 1, 1)).run(models=MODELS[:2])
    for words, out in (
        (["--config", str(config)], "runs/tiny/report.html"),
        (["runs/other"], "runs/other/report.html"),
        (["runs/tiny", "runs/other"], "runs/report.html"),
    ):
        monkeypatch.setattr(sys, "argv", ["report", *words])
        main()
        assert capsys.readouterr().out.startswith(f"{out}: ") and (tmp_path / out).is_file()
    monkeypatch.setattr(sys, "argv", ["report"])
    with pytest.raises(UserError, match="name either folders of runs or --config"):
        main()


def test_files_that_are_not_of_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
    maker = Maker(tmp_path / "mixed", prompts=6, K=3, N=4, lengths=(10, 10, 10))
    maker.iteration(1)
    for name in ("prompts.jsonl", "responses/units/0.jsonl"):
        path = tmp_path / "mixed" / "iter1" / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[1:] if name == "prompts.jsonl" else lines[:3]))
        with pytest.raises(UserError, match=r"iter1: its files are not of one run \('t1000.* is missing\)"):
            read_evidence(path.parents[0] if name == "prompts.jsonl" else path.parents[2])
        path.write_text("".join(lines))


def test_a_run_without_iterations_is_its_sft(tmp_path):
    run = Maker(tmp_path / "sft-only", 1, 1, 1, (1, 1, 1)).run(models=MODELS[:2])
    write_report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("No iteration is finished yet.") == 4


def test_more_runs_than_colours(made, tmp_path):
    with pytest.raises(UserError, match=f"{MOST + 1} runs: a report has colours for {MOST}"):
        write_report([made] * (MOST + 1), tmp_path / "report.html")


@needs_chromium
@pytest.mark.slow
def test_five_thousand_prompts_open_in_three_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
    maker = Maker(tmp_path / "full", prompts=5000, K=7, N=11, lengths=(200, 1900, 600))
    out = tmp_path / "report.html"
    write_report([maker.run(maker.iteration(1, planted=False))], out)
    with chromium.Browser(tmp_path / "chromium") as browser:
        seconds = min(browser.open(out.as_uri()) for _ in range(2))
        print(f"{out.stat().st_size / 1e6:.1f} MB, open after {seconds:.2f} s")
        assert seconds < 3
        assert browser.evaluate("document.getElementById('count').textContent") == "10,000 of 10,000"
        assert not browser.evaluate("document.getElementById('cut').hidden")
        assert browser.complaints == []
