"""The report of runs that are made by hand through the real pairs stage and the real panel, read in Chromium."""

import base64
import html
import json
import re
import shlex
import shutil
import sys
import zlib
from pathlib import Path

import chromium
import pytest
from made_runs import MODELS, PROMPTS, Maker
from records import CHAT

import evaluation.report.browser
import judging.pairs
from evaluation.report import main, write_report
from evaluation.report.browser import pack, read_evidence
from evaluation.report.page import MOST, read_run
from evaluation.report.plots import Point, Series, lines
from evaluation.report.sections import sections
from evaluation.report.standings import COLUMNS, cells
from stages.files import UserError, read_jsonl, write_jsonl, write_manifest

needs_chromium = pytest.mark.skipif(not chromium.found(), reason=f"no Chromium here: none of {chromium.PROGRAMS}")


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
    matched = 0
    for words in (word, f"{word[:3]} {pairs[7]['id'][-3:].upper()}", "zebra window.pwned", "nothing-has-this"):
        expected = {name for name, text in content.items() if all(part in text for part in words.lower().split())}
        assert shown(page, words, "actor") | shown(page, words, "judge") == expected
        matched += len(expected)
    assert matched >= 5


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
        [r for r in read_jsonl(made / "iter1" / name / "shards/0.jsonl") if r["response_id"] == pair["response_id"]]
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
        swatches = browser.evaluate("[...document.querySelectorAll('.card dl i.swatch')].map(node => node.className)")
        assert set(swatches) == {"swatch c1", "swatch c2"}
        assert browser.complaints == []


def test_the_table_says_who_judged_and_what_is_against_the_seed(made):
    write_report([made], made / "report.html")
    source = (made / "report.html").read_text()
    table = re.search(r'<table class="models">.*?</table>', source, re.DOTALL)[0]
    last = [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td>.*?</td>", table.split(">M2<")[1])
    ]
    assert last[0] == "65.0% 60.0 to 70.0 self-judged by M2, by mean scores"
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
    monkeypatch.setattr(evaluation.report, "browser", evaluation.report.browser)  # the import below makes another
    for name in [name for name in sys.modules if name.startswith("evaluation.report.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"the report needs matplotlib: pip install '\.\[report\]'"):
        write_report([made], tmp_path / "report.html")


def test_a_judge_from_elsewhere_is_not_the_model_itself():
    won = {"win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9}, "win_rate_way": "in both orders"}
    for judge, said in (("M1", "self-judged by M1,"), ("models/large", "judged by models/large,")):
        cell = next(cells(won | {"win_rate_by": judge}, COLUMNS[:1]))
        assert cell.lines == ["40.0 to 60.0", said, "in both orders"]


def test_the_command_names_folders_or_a_config(tmp_path, monkeypatch, capsys):
    config = Path(__file__).parents[2] / "configs" / "tiny.toml"
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
    for name in ("prompts.jsonl", "responses/shards/0.jsonl"):
        path = tmp_path / "mixed" / "iter1" / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[1:] if name == "prompts.jsonl" else lines[:3]))
        with pytest.raises(UserError, match=r"iter1: its files are not of one run \('t1000.* is missing\)"):
            read_evidence(path.parents[0] if name == "prompts.jsonl" else path.parents[2])
        path.write_text("".join(lines))


def test_a_run_without_iterations_is_its_sft(tmp_path):
    run = Maker(tmp_path / "sft-only", 1, 1, 1, (1, 1, 1)).run(models=MODELS[:2])
    write_report([run], tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text()
    assert "No iteration is finished yet: there are no scores" in source and "the seed after SFT" in source
    assert 'id="browser"' not in source and "<script" not in source


def text_of(report: Path) -> str:
    """What a reader sees, blanks alike, without the browser of pairs."""
    source = re.sub(r"<(style|script|svg).*?</\1>", "", report.read_text(), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", source).split()))


def test_what_was_deleted_is_said(made, tmp_path):
    run, out = tmp_path / "saved-room", tmp_path / "report.html"
    shutil.copytree(made, run)
    shutil.rmtree(run / "iter1" / "responses")
    shutil.rmtree(run / "iter2" / "train")
    write_report([run], out)
    words = text_of(out)
    gone = "no pairs, Elo scores and scores by length of iteration 1: "
    assert f"{gone}{run}/iter1/responses: not a finished stage (no manifest.json)" in words
    assert f"no training curves of iteration 2: {run}/iter2/train/metrics.jsonl: no such file" in words
    assert "Score by length, iteration 2" in words and "Score by length, iteration 1" not in words
    assert "Scores in iteration 1" in words  # which the panel knows


def test_a_summary_that_is_not_this_versions(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    known = json.loads(path.read_text())
    del known["iterations"][1]["bias"]
    for text, words in (
        (json.dumps(known), r"run/summary\.json: of another version \(bias is missing\); `make iterate`"),
        ("{", r"run/summary\.json: not JSON \(.*\); `make iterate` of this run writes a new one"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            write_report([tmp_path / "run"], tmp_path / "report.html")


def test_settings_may_hold_anything(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(
        '{"respond": {"K": "<b>7", "prompts_per_iteration": 5000}, "judge": 3}'
    )
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "Prompts per iteration 5,000 Responses per prompt, K <b>7 Iterations 2" in text_of(tmp_path / "report.html")


def test_models_of_several_runs_stand_under_their_names(tmp_path):
    """One has no SFT, so its first model is M0 and not the seed; the other has fewer iterations."""
    rates = {"with": {"seed": 0.11, "M0": 0.12}, "without": {"M0": 0.22, "M1": 0.23, "M2": 0.24}}
    runs = [
        Maker(tmp_path / name, 1, 1, 1, (1, 1, 1)).run(
            models=[MODELS[0] | {"name": model, "parse_rate": rate} for model, rate in own.items()]
        )
        for name, own in rates.items()
    ]
    write_report(runs, tmp_path / "report.html")
    words = text_of(tmp_path / "report.html")
    assert "More numbers, by model seed M0 M1 M2 Parsed: judgments that hold a score , with 11.0% 12.0% - -" in words
    assert "Parsed: judgments that hold a score , without - 22.0% 23.0% 24.0%" in words


def test_seconds_and_tokens_of_every_stage(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    folders = {"seed/judge/judgments": 7, "M0/judge/judgments": 8, "M2/judge/judgments": 40}
    folders |= {"M2/wins/verdicts": 50, "M2/actor/answers": 60, "M2/metajudge/comparisons": 99}
    for name, seconds in folders.items():
        write_manifest(
            tmp_path / "run" / "evaluation" / name, "test", "key", [], seconds=seconds, new_tokens=100 * seconds
        )
    write_report([tmp_path / "run"], tmp_path / "report.html")
    words = text_of(tmp_path / "report.html")
    for row in (
        "before 1 2 responses: seconds - 10 10 responses: new tokens - 1,000 1,000",
        "responses: new tokens a second - 100 100",
        "training: seconds - 5 5",
        "held-out answers: seconds - - 60",
        "answers compared with the seed's: new tokens - - 5,000",
        "judge on labelled responses: seconds 15 - 40",
    ):
        assert row in words
    assert "meta-judge on labelled" not in words  # no model has its outcome: left by another run


def test_an_iteration_whose_prompts_all_gave_no_judge_pair_has_its_reasons(made):
    run = read_run(made)
    run.iterations[0].row["bias"]["pairs"]["judge"] = {"pairs": 0, "yield": 0.0, "reasons": {"position_collapse": 45}}
    card = next(card for section in sections([run]) for card in section.cards if "judge pairs" in card.title)
    assert card.legend == [(0, "pair"), (1, "position collapse")]


def test_dollars_are_no_formula():
    assert "$\\frac$" in lines("name", [Series(0, [Point(0, 1)])], ticks={0.0: "$\\frac$"})


@needs_chromium
def test_an_address_that_nobody_can_read_opens_no_pair(page):
    for place in ("#actor/%E0%A4", "#100%/", "#actor/none-of-this"):
        page.open(page.url + place)
        assert page.evaluate("document.getElementById('pair').childElementCount") == 0


@needs_chromium
def test_the_command_of_a_pair_is_quoted_for_a_shell(page, made):
    page.open(f"{page.url}#none/actor/t10044")
    command = page.evaluate("document.querySelector('#pair code').textContent")
    assert command == f"python -m judging.trace {shlex.quote(str(made))} --why-not t10044"


@needs_chromium
def test_an_open_pair_follows_the_search(page, made):
    pair = all_pairs(made)[9]
    page.open(f"{page.url}#{pair['id']}")
    assert page.evaluate("document.querySelectorAll('#pair mark').length") == 0
    word = pair["chosen"][0]["content"].split()[3]
    shown(page, word, "all")
    page.wait(f"document.querySelector('#pair mark')?.textContent.toLowerCase() === {json.dumps(word.lower())}")


@needs_chromium
def test_a_cut_text_is_counted_in_characters(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run" / "iter2" / "prompts.jsonl"
    write_jsonl(path, [row | {"prompt": "\N{ZEBRA FACE}" * 100} for row in read_jsonl(path)])
    monkeypatch.setattr(evaluation.report.browser, "TEXT_BUDGET", 10)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    with chromium.Browser(tmp_path / "chromium") as browser:
        browser.open((tmp_path / "report.html").as_uri() + "#actor/t20003")
        assert browser.evaluate("document.querySelector('#pair .note').textContent") == "Cut: 60 of 100 characters."
        heads = browser.evaluate("[...document.querySelectorAll('#entries .head')].map(node => node.textContent)")
        assert heads and all(head.isprintable() for head in heads[-3:])


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
