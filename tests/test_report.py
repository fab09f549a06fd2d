"""The report of runs that are made by hand through the real pairs stage and the real panel, read in Chromium."""

import base64
import json
import random
import re
import zlib
from pathlib import Path

import chromium
import pytest
from test_pairs import CHAT

import evaluation.browser
import judging.pairs
from evaluation.bias import write_panel
from evaluation.browser import pack, read_evidence
from evaluation.report import MOST, write_report
from files import UserError, read_jsonl, read_manifest, write_json, write_jsonl, write_manifest
from judging.pairs import Sources, write_pairs
from settings import Iteration, Judge, Metajudge, Model, Respond, Settings

PLANTED = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script><!-- {{ 7 * 7 }}'
needs_chromium = pytest.mark.skipif(not chromium.found(), reason=f"no Chromium here: none of {chromium.PROGRAMS}")


class Maker:
    """A run's folder with as many prompts, responses and judgments as asked, of random words."""

    def __init__(self, folder: Path, prompts: int, K: int, N: int, lengths: tuple[int, int, int], seed: int = 0):
        self.folder, self.prompts, self.K, self.N, self.lengths = folder, prompts, K, N, lengths
        self.random = random.Random(seed)
        words = ["".join(self.random.choices("abcdefghijklmnopqrstuvwxyz", k=self.random.randint(2, 9))) for _ in "x" * 4000]
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
        """Writes an iteration; returns its row of the summary."""
        folder = self.folder / f"iter{number}"
        prompt_length, response_length, judgment_length = self.lengths
        prompts = [{"id": f"t{number}{i:04}", "prompt": self.text(prompt_length)} for i in range(self.prompts)]
        if planted:
            prompts[0]["prompt"] = f"{PLANTED} zebra"
        common = {"ids": [3, 4], "finish_reason": "stop", "logprob": -1.0, "seed": 1}
        responses = [
            {"id": f"{row['id']}/r{k}", "prompt_id": row["id"], "sample": k, "prompt": row["prompt"], **common,
             "text": f"{PLANTED} {k}" if planted and i == 0 else self.text(response_length)}
            for i, row in enumerate(prompts) for k in range(self.K)
        ]  # fmt: skip
        judgments, comparisons, chances = [], [], [*range(6), None]
        for row in responses:
            for n in range(self.N):
                score = self.random.choice(chances) if row["prompt_id"] != prompts[-1]["id"] else 3
                name = f"{row['id']}/j{n}"
                judgments.append(
                    {"id": name, "response_id": row["id"], "prompt_id": row["prompt_id"], "index": n, **common,
                     "text": f"{self.text(judgment_length)} {PLANTED if planted else ''}\nScore: {score}",
                     "score": score, "failure": None if score is not None else "missing"}
                )  # fmt: skip
        scores = {row["id"]: row["score"] for row in judgments}
        from judging.scores import distinct_responses, group_by, meta_judged, seeded_draw

        by_response = group_by(judgments, "response_id")
        draw = seeded_draw(0, number)
        for own in group_by(distinct_responses(responses), "prompt_id").values() if judge_pairs else ():
            response, distinct = meta_judged(own, by_response, draw)
            indices = [row["index"] for row in distinct]
            for m in indices:
                for n in indices:
                    if m == n:
                        continue
                    gap = scores[f"{response['id']}/j{m}"] - scores[f"{response['id']}/j{n}"]
                    winner = self.random.choices(["first", "second", None], [3 + max(gap, 0), 2 + max(-gap, 0), 1])[0]
                    comparisons.append(
                        {"id": f"{response['id']}/m{m}-{n}", "response_id": response["id"],
                         "prompt_id": response["prompt_id"], "first": m, "second": n, "winner": winner, **common,
                         "text": f"{self.text(judgment_length)}\nWinner: {winner}",
                         "failure": None if winner else "malformed"}
                    )  # fmt: skip
        write_jsonl(folder / "prompts.jsonl", prompts)
        sources = Sources(
            self.stage(folder / "responses", responses),
            self.stage(folder / "judgments", judgments),
            comparisons=self.stage(folder / "comparisons", comparisons) if judge_pairs else None,
        )
        settings = Settings(
            name="made",
            model=Model(path="m"),
            respond=Respond(prompts="p", prompts_per_iteration=self.prompts, K=self.K),
            judge=Judge(N=self.N),
            metajudge=Metajudge(),
            iteration=[Iteration(judge_pairs=judge_pairs)] * number,
        )
        write_pairs(settings, number, self.model, sources, folder / "pairs")
        panel = write_panel(folder / "bias.json", number, settings, sources, folder / "pairs")
        steps = [
            {"step": i, "epoch": 1, "split": "train", "loss": 0.7 - i / 50, "margin": i / 50, "grad_norm": 1.0,
             "reward_chosen": i / 90, "reward_rejected": -i / 90, "accuracy": 0.5}
            for i in range(10)
        ]  # fmt: skip
        write_jsonl(folder / "train" / "metrics.jsonl", steps)
        counts = read_manifest(folder / "pairs")["counts"]
        return {
            "iteration": number,
            "rho": 0.0,
            "pairs": {"actor": counts["actor"], "judge": counts.get("judge", 0)},
            "bias": panel,
            "dpo": {"loss": 0.5, "accuracy": 0.75, "margin": 0.2, "held_out": True},
            "agreement": None,
            "meta_agreement": None,
            "seconds": {"respond": 10.0, "judge": 20.0, "pairs": 0.1, "train": 5.0},
            "new_tokens": {"respond": 1000, "judge": 4000},
        }

    def run(self, *iterations: dict, models: list[dict] | None = None) -> Path:
        sft = {"agreement_before": None, "agreement": None, "meta_agreement": None}
        summary = {"name": "made", "seed": 1, "model": "models/seed", "sft": sft, "iterations": list(iterations)}
        write_json(self.folder / "summary.json", summary | ({"models": models} if models else {}))
        return self.folder


def measured(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 100}


MODELS = [
    {"name": name, "verifiable": measured(0.4 + i / 20), "win_rate": measured(0.5 + i / 20) if i else None,
     "win_rate_by": "M2, by mean scores" if i else None, "win_rate_consistency": None,
     "characters": {"value": 1500.0 + 10 * i, "low": 1400.0, "high": 1600.0, "count": 100},
     "agreement": measured(0.7), "longer_wins": measured(0.51), "spearman": measured(0.5),
     "differences": {"verifiable": measured(i / 20)} if i else None,
     "pairs": {"actor": 3, "judge": 2} if i > 1 else None}
    for i, name in enumerate(("seed", "M0", "M1", "M2"))
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two iterations; its name holds what HTML would read as markup."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
        maker = Maker(folder / "a<b>&c", prompts=70, K=3, N=4, lengths=(60, 200, 80))
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
        assert set(browser.requests) == {browser.url}


def type_words(page, words: str) -> list[str]:
    """What the list shows after these words were typed into the search box."""
    page.evaluate("document.getElementById('search').focus(), document.getElementById('search').select()")
    page.call("Input.insertText", text=words)
    return page.evaluate("[...document.querySelectorAll('#entries .id')].map(node => node.textContent)")


def all_pairs(run: Path) -> list[dict]:
    kinds = [path for name in ("actor", "judge") for path in sorted(run.glob(f"iter*/pairs/{name}.jsonl"))]
    return [row for path in kinds for row in read_jsonl(path)]


@needs_chromium
def test_the_search_finds_the_pairs_that_have_all_words(page, made):
    def content(row: dict) -> str:
        prompt = next(p["prompt"] for p in prompts if p["id"] == row["chosen_id"].split("/")[0])
        return "\n".join([row["id"], prompt, row["chosen"][0]["content"], row["rejected"][0]["content"]]).lower()

    prompts = [row for t in (1, 2) for row in read_jsonl(made / f"iter{t}" / "prompts.jsonl")]
    pairs = all_pairs(made)
    word = pairs[7]["chosen"][0]["content"].split()[3]
    words = (word, word[:3] + " " + pairs[7]["id"][-3:].upper(), "zebra window.pwned", "nothing-has-this")
    for searched in words:
        expected = {row["id"] for row in pairs if all(part in content(row) for part in searched.lower().split())}
        page.evaluate("document.getElementById('kind').value = 'all'")
        shown = {name for name in type_words(page, searched) if not page.evaluate(f"isNone({json.dumps(name)})")} if False else set(type_words(page, searched))
        nothing = {f"{row['kind']}/{row['prompt_id']}" for p in made.glob("iter*/pairs/none.jsonl") for row in read_jsonl(p)}
        assert shown - nothing == expected - nothing
    assert type_words(page, "nothing-has-this") == []


@needs_chromium
def test_filters_count_what_the_files_hold(page, made):
    type_words(page, "")
    page.evaluate("document.getElementById('search').value = ''")
    options = page.evaluate("[...document.getElementById('kind').options].map(option => [option.value, option.text])")
    none = [row for path in made.glob("iter*/pairs/none.jsonl") for row in read_jsonl(path)]
    for value, text in options[1:]:
        kind = value.split("/")
        if kind[0] == "none":
            count = sum(row["kind"] == kind[1] and (len(kind) < 3 or row["reason"] == kind[2]) for row in none)
        else:
            count = sum(row["kind"] == kind[0] for row in all_pairs(made))
        assert text.endswith(f"({count})")
        choose = f"const s = document.getElementById('kind'); s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change'))"
        page.evaluate(f"(() => {{{choose}}})()")
        total = 2 * 70 + 70  # actor in two iterations, judge in one: a pair or a reason for every prompt
        assert page.evaluate("document.getElementById('count').textContent") == f"{count} of {total}"
    assert {value for value, _ in options} >= {"actor", "judge", "none/actor/equal_scores"}
    page.evaluate("document.getElementById('kind').value = 'all'")


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
    folder = made / "iter1"
    judgments = [row for row in read_jsonl(folder / "judgments/units/0.jsonl") if row["response_id"] == pair["response_id"]]
    comparisons = [row for row in read_jsonl(folder / "comparisons/units/0.jsonl") if row["response_id"] == pair["response_id"]]
    wanted = [pair["chosen"][0]["content"], pair["rejected"][0]["content"]]
    wanted += [row["text"] for row in judgments + comparisons]
    assert set(wanted) <= set(texts) and len(texts) == len(wanted) + 2  # and the prompt, and the response
    won = page.evaluate("[...document.querySelectorAll('#pair .matrix td')].filter(cell => cell.textContent === '1').length")
    assert won == sum(row["winner"] == "first" for row in comparisons)
    page.evaluate("document.querySelector('#entries a:not([aria-current])').click()")
    page.wait(f"document.querySelector('#pair h3').textContent !== {json.dumps(pair['id'])}")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_page_wide_scrolling_and_hides_the_list_while_a_pair_is_read(page, dark):
    page.size(375, 800, dark)
    for place in ("", "#actor/t10000", "#none/actor/t10069"):
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
    other = tmp_path / "other"
    other.symlink_to(made)
    write_report([made, made], out)
    with chromium.Browser(tmp_path / "chromium") as browser:
        browser.open(out.as_uri())
        assert browser.evaluate("document.querySelectorAll('table.models tbody').length") == 2
        assert browser.evaluate("document.querySelectorAll('table.models tbody tr').length") == 2 * (1 + len(MODELS))
        names = browser.evaluate("[...document.getElementById('run').options].map(option => option.text)")
        assert names == ["All", str(made), str(made)]
        assert browser.evaluate("document.getElementById('count').textContent") == "420 of 420"
        colours = browser.evaluate("new Set([...document.querySelectorAll('.card i.swatch')].map(n => n.className)).size")
        assert colours == 2
        assert browser.complaints == []


def test_the_table_says_who_judged_and_what_is_against_the_seed(made):
    source = (made / "report.html").read_text() if (made / "report.html").is_file() else ""
    if not source:
        write_report([made], made / "report.html")
        source = (made / "report.html").read_text()
    table = re.search(r'<table class="models">.*?</table>', source, re.DOTALL)[0]
    last = [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.findall(r"<td>.*?</td>", table.split(">M2<")[1])]
    assert last[0] == "65.0% 60.0% to 70.0% by M2, by mean scores".split()
    assert last[1] == "55.0% 50.0% to 60.0% seed +15.0% [+10.0%, +20.0%]".split()
    assert last[-1] == ["3,", "2"]
    assert "self-judged" in table


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    for name in ("one", "two"):
        write_report([made], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def inflated(text: str):
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_texts_are_cut_to_the_budget_and_say_so(made, monkeypatch):
    evidence = read_evidence(made / "iter1")
    monkeypatch.setattr(evaluation.browser, "TEXT_BUDGET", 70 * 6 * 60)
    monkeypatch.setattr(evaluation.browser, "JUDGMENT_BUDGET", 10)
    packed = pack([[(1, evidence)]])
    assert packed["limits"] == {"text": 60, "judgment": 60}
    rows = [row for chunk in packed["texts"] for row in inflated(chunk)]
    for prompt, row in zip(evidence.prompts.values(), rows, strict=True):
        for (_, known), (_, characters, _, text) in zip(prompt.responses.items(), row["responses"], strict=True):
            whole = known["text"]
            assert characters == known["characters"]
            assert text == (whole if whole is None or len(whole) <= 60 else [whole[:60], len(whole)])


def test_a_run_without_what_the_report_is_made_from(made, tmp_path):
    with pytest.raises(UserError, match=r"summary\.json: no such file; name a run's folder, or let iterate\.py"):
        write_report([tmp_path], tmp_path / "report.html")
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
