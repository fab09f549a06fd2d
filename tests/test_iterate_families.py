"""iterate.py on a small model of each family beside Llama, with a tokenizer and a template as the family has them."""

import json
from dataclasses import replace

import pytest
from chat_templates import write
from families import BASE, VARIANTS, formula
from processes import ROOT, iterate
from safetensors.torch import load_file, save_file

from model.config import LlamaConfig
from prepare.scripted import write_speaker

CONFIG = f"""extends = "{ROOT / "configs" / "tiny.toml"}"
[model]
path = "models/seed"
prepare = ""
[sft]
enabled = false
[judge]
verdict_position = "last"
[metajudge]
verdict_position = "last"
[dpo]
learning_rate = 1e-2
[[iteration]]
"""


@pytest.mark.parametrize(
    ("family", "template", "own"),
    [
        pytest.param("mistral", "mistral-v0.3", 0, marks=pytest.mark.slow),
        pytest.param("qwen2", "qwen2.5", 3 * 2, marks=pytest.mark.slow),
        ("qwen3", "qwen3", 2 * 2),
    ],
)
def test_a_whole_run(tmp_path, family, template, own):
    """Biases and norms of heads, `own` of them, are far from their initial values, and trained like all else."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    shape = replace(LlamaConfig.from_dict(BASE | VARIANTS[family]), max_position_embeddings=4096)
    write_speaker(tmp_path / "models" / "seed", write(tmp_path / "real", template), shape)
    file = tmp_path / "models" / "seed" / "model.safetensors"
    before = load_file(file)
    vectors = [name for name in before if name.endswith(("bias", "q_norm.weight", "k_norm.weight"))]
    assert len(vectors) == own
    before |= {name: formula(name, before[name].shape).bfloat16() for name in vectors}
    save_file(before, file)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    code, _, err = iterate(tmp_path)
    assert code == 0, err
    [row] = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())["iterations"]
    assert row["pairs"]["actor"] > 0 and row["pairs"]["judge"] > 0
    assert row["dpo"]["first_loss"] == pytest.approx(0.693147, abs=1e-4)
    after = load_file(tmp_path / row["checkpoint"] / "model.safetensors")
    assert after.keys() == before.keys() and all((after[name] != before[name]).any() for name in after)
    assert json.loads((tmp_path / row["checkpoint"] / "config.json").read_text())["model_type"] == family
