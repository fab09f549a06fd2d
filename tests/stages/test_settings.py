"""stages/settings.py: shipped configs load, the paper's config has its numbers, errors name mistakes."""

from dataclasses import replace
from pathlib import Path

import pytest

from stages.command import UserError
from stages.settings import Iteration, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_load(path):
    """Each config has its own name, and so its own folder for runs."""
    name = path.stem if path.parent == CONFIGS else f"{path.parent.name}-{path.stem}"
    assert load_settings(path).name == name


def test_baselines_of_the_paper():
    """A baseline differs from the paper's run only where its name says so."""
    folder, paper = CONFIGS / "llama3-8b-instruct", load_settings(CONFIGS / "llama3-8b-instruct.toml")
    baselines = {path.stem: load_settings(path) for path in folder.glob("*.toml")}
    assert set(baselines) == {path.stem for path in (CONFIGS / "tiny").glob("*.toml")} - {"lora"}
    rules = {name: settings.iteration for name, settings in baselines.items()}
    for rule, ours in zip(paper.iteration, rules["self-rewarding"], strict=True):
        assert replace(rule, judge_pairs=False, max_judgment_characters=None) == ours
    assert rules["self-rewarding-no-length-control"] == [Iteration(length_control="off", judge_pairs=False)] * 4
    assert rules["scores-from-file"] == rules["self-rewarding"]
    assert [rule.judge_pairs for rule in rules["judge-pairs-throughout"]] == [True] * 4
    assert rules["sft-only"] == [] and not baselines["no-sft"].sft.enabled
    sections = ("name", "iteration", "judge", "metajudge", "sft", "eft", "evaluation")
    for settings in baselines.values():
        assert replace(settings, **{key: getattr(paper, key) for key in sections}) == paper


def test_a_config_extends_another(tmp_path):
    (tmp_path / "base.toml").write_text((CONFIGS / "tiny.toml").read_text())
    (tmp_path / "folder").mkdir()
    middle, top = tmp_path / "folder" / "middle.toml", tmp_path / "top.toml"
    middle.write_text('extends = "../base.toml"\nname = "middle"\n[judge]\nN = 9\n[[iteration]]\nrho = 0.7\n')
    top.write_text('extends = "folder/middle.toml"\nname = "top"\n[judge]\ntop_p = 0.5\n')
    base, settings = load_settings(tmp_path / "base.toml"), load_settings(top)
    assert settings == replace(
        base, name="top", judge=replace(base.judge, N=9, top_p=0.5), iteration=[Iteration(rho=0.7)]
    )
    (tmp_path / "base.toml").write_text('extends = "top.toml"\n')
    with pytest.raises(UserError, match=r"base\.toml: extends: top\.toml extends this config again"):
        load_settings(top)
    for text, complaint in (
        ('extends = "none.toml"', r"none\.toml: no such file; name a config"),
        ("seed = 1", "name: missing"),
    ):
        (tmp_path / "base.toml").write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_settings(tmp_path / "base.toml")


def test_the_papers_numbers():
    """The schedule of the paper."""
    settings = load_settings(CONFIGS / "llama3-8b-instruct.toml")
    assert (settings.respond.prompts_per_iteration, settings.respond.K, settings.judge.N) == (5000, 7, 11)
    for sampling in (settings.respond, settings.judge, settings.metajudge):
        assert (sampling.temperature, sampling.top_p) == (0.8, 0.95)
    assert (settings.dpo.beta, settings.dpo.learning_rate, settings.dpo.batch_size) == (0.1, 5e-6, 32)
    assert settings.dpo.reference == "previous" and settings.dpo.epochs == 10
    assert settings.iteration == [
        Iteration(rho=0.0, max_response_characters=2500, max_judgment_characters=1100),
        Iteration(rho=0.32, max_judgment_characters=1000),
        Iteration(rho=0.32, judge_pairs=False),
        Iteration(rho=0.40, judge_pairs=False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[dpo]\nepochs = 2\n[[iteration]]\nepoch = 2",
        "[respond]\nK = 1\n[[iteration]]",
        "[judge]\nN = 1\n[[iteration]]\njudge_pairs = false",
        "[judge]\nscore = 'expected'\n[evaluation]\nprotocol = 'pairwise'\nduel_samples = 2",
    ],
)
def test_settings_that_go_together(tmp_path, text):
    """The last: comparisons vary, where scores with the verdict first do not."""
    (tmp_path / "config.toml").write_text(f'extends = "{CONFIGS / "tiny.toml"}"\n{text}\n')
    load_settings(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "not TOML"),
        ("seeds = 3", "seeds: unknown key; known here: name, model"),
        ("judge = 3", "judge: expected Judge, got 3"),
        ("[[iteration]]\nrho = 1.5", r"iteration\[0\]\.rho is 1\.5; it must be at least 0 and at most 1"),
        ('[[iteration]]\nrho = "high"', r"iteration\[0\]\.rho: expected float, got 'high'"),
        ("[[iteration]]\njudge_pairs = 1", r"iteration\[0\]\.judge_pairs: expected bool, got 1"),
        ('[dpo]\nreference = "last"', r"dpo\.reference: expected 'previous' or 'initial', got 'last'"),
        ("[respond]\nK = true", r"respond\.K: expected int, got True"),
        ("[respond]\ntemperature = inf", r"respond\.temperature is inf"),
        ("[eft]\nN = 0", r"eft\.N is 0; it must be at least 1"),
        ("[sft]\nexamples = [3]", r"sft\.examples\[0\]: expected str, got 3"),
        ("[metajudge]\nelo_penalty = 0", r"metajudge\.elo_penalty is 0\.0; it must be above 0"),
        ("[metajudge]\nmax_score_gap = -1", r"metajudge\.max_score_gap is -1\.0; it must be at least 0"),
        ("[plan]\ntraining_utilisation = 40", r"plan\.training_utilisation is 40\.0; it must be above 0 and at most 1"),
        ("[plan]\neft_yield = 0.1", r"plan\.eft_yield: unknown key"),
        ("[metajudge]\nopponents = 3", r"metajudge\.opponents is 3; it must be even"),
        ("[metajudge]\nopponents = 2\nmax_score_gap = 1", "max_score_gap goes with opponents = 0 alone"),
        ("[metajudge]\nmax_score_gap = 0\n[guards]\ndistinct_scores = true", "needs max_score_gap > 0"),
        ("[guards]\nmax_score_share = 0.1", r"guards\.max_score_share must be at least 1/6"),
        ("[guards]\nmax_judge_pair_share = 0", r"guards\.max_judge_pair_share is 0\.0; it must be above 0"),
        ("[judge]\nN = 3\nminimum_valid = 4", r"judge\.minimum_valid is more than judge\.N, 3"),
        ('[judge]\nscores_file = "{t}.jsonl"', r"judge\.scores_file leaves nothing to meta-judge"),
        ('[judge]\nscores_file = "s.jsonl"', r"judge\.scores_file is one file for several iterations"),
        ('[judge]\nscore = "expected"\nscores_file = "{t}.jsonl"', r"judge\.scores_file replaces the judge"),
        ('[[iteration]]\nlabels = "rules"', r'labels = "rules" leaves nothing to meta-judge'),
        (
            '[judge]\nscores_file = "s"\n[[iteration]]\nlabels = "rules"\njudge_pairs = false',
            "both replace the judge; leave one out",
        ),
        ('[judge]\nscore = "expected"\n[evaluation]\nN = 2', r"evaluation\.N and duel_samples must be 1"),
        ('[judge]\nscore = "expected"\n[evaluation]\nduel_samples = 2', r"evaluation\.N and duel_samples must be 1"),
        ('[evaluation]\njudge_cases = "{run}/sft/eft/held_out.jsonl"', r"judge_cases: \[eft\] sets no groups aside"),
        ("[prompts]\nseeds = 's'", "respond.prompts or from prompts.seeds"),
        ("[respond]\nprompts = []\n[prompts]\nseeds = 's'\ncount = 9", r"prompts\.count is 9, the iterations need 16"),
        ("[trainer]\nlora_rank = 8\nlora_targets = []", r"trainer\.lora_targets is empty; name a matrix"),
        ("[trainer]\nlora_targets = ['q_proj']", r"lora_targets\[0\]: expected 'qkv_proj' or 'o_proj' or"),
        ("[trainer]\nsave_adapters = true", r"trainer\.save_adapters needs adapters; set lora_rank"),
        ("[prompts]\nmodel = 'm'", r"prompts\.model writes prompts after prompts\.seeds; set seeds, too"),
        (
            "[dpo]\nepochs = 2\n[[iteration]]\n[[iteration]]\nepoch = 3",
            r"iteration\[1\]\.epoch is 3, but dpo\.epochs is 2",
        ),
        ("[respond]\nK = 1", r"respond\.K is 1, but a pair of responses needs two"),
        ("[judge]\nN = 1", r"judge\.N is 1, but a judge pair needs two judgments"),
        ("[judge]\nN = 1\nscore = 'expected'", r"judge\.N is 1, but a judge pair needs two judgments"),
        ("[[iteration]]\nrho = 0.3\nlength_control = 'off'", r"iteration\.rho belongs to length control"),
        ("[prompts]\ngenerated_shots = 9", r"prompts\.generated_shots exceeds prompts\.shots, 8"),
        ("[prompts]\nmin_words = 200", r"prompts\.min_words exceeds prompts\.max_words, 150"),
    ],
)
def test_mistakes_are_named(tmp_path, text, complaint):
    path = tmp_path / "config.toml"
    path.write_text(f'extends = "{CONFIGS / "tiny.toml"}"\n{text}\n')
    with pytest.raises(UserError, match=rf"config\.toml: .*{complaint}") as error:
        load_settings(path)
    assert "\n" not in str(error.value)
