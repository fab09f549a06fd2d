"""Expected scores: by hand, against a plain model in fp64, and through an iteration."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from plain_llama import PlainLlama
from records import BYTES_CHAT as CHAT
from records import make_settings, response, take_first

from judging.expected import expected_items, read_expected, score_tokens
from judging.metajudge import choose_meta_judged
from judging.scores import most_uncertain, response_scores, spreads
from model.weights import load_model
from prepare.seed_model import make_tiny
from sampling.engine import Engine
from sampling.request import Completion, Request, Sampling
from sampling.worker import Item
from stages.command import UserError
from stages.settings import Judge

FIRST = Judge(prompt_style="compact", verdict_position="first", score="expected")
RESPONSE = {"id": "p/r0", "prompt_id": "p", "prompt": "Why?", "text": "So."}
DIGITS = tuple(range(6))


def record(*probabilities: float, finish_reason: str) -> dict:
    item = Item("p/r0/e", list, Sampling(0.0, 1.0, 1), 0, "p", {}, (), DIGITS)
    row = item.row(Completion("p/r0/e", [], finish_reason, 0.0, probabilities), CHAT)
    return row | read_expected(row)


@pytest.mark.parametrize(
    ("probabilities", "score", "variance", "failure"),
    [
        ((0, 0, 0, 1, 0, 0), 3, 0, None),
        ((0.25, 0, 0, 0, 0, 0.75), 3.75, 4.6875, None),  # 0.25 * 3.75^2 + 0.75 * 1.25^2
        ((0.1,) * 6, 2.5, round(35 / 12, 6), None),  # a fair die's, though they add up to 0.6
        ((0.1, 0.2, 0.3, 0.2, 0.1, 0.1), 2.3, 2.01, None),
        ((0.1, 0, 0, 0, 0, 0.39), None, None, "low_mass"),
        ((float("nan"),) * 6, None, None, "low_mass"),
        ((), None, None, "too_long"),
    ],
)
def test_a_row_has_mean_and_variance_or_says_why_not(probabilities, score, variance, failure):
    row = record(*probabilities, finish_reason="length" if probabilities else "too_long")
    assert (row["score"], row["variance"], row["failure"]) == (score, variance, failure)


def test_the_engine_gives_the_models_own_probabilities(tmp_path):
    """Other requests, cached prefixes and chunked prefill change no probability."""
    named, sampling = (5, 77, 30), Sampling(0.8, 0.9, 3)
    prompts = [[7, 8, 9, 10, 11], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16], list(range(3, 60))]
    make_tiny(tmp_path)
    plain = PlainLlama(tmp_path)
    expected = [plain.logits(ids)[-1].softmax(-1)[list(named)].tolist() for ids in prompts]
    for tokens, share in ((128, True), (7, True), (128, False)):
        options = {"num_kv_blocks": 64, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": tokens}
        machine = Engine(load_model(tmp_path, torch.float32), **options, share_prefixes=share)
        requests = [Request(f"{i}/{k}", ids, sampling, k, named) for i, ids in enumerate(prompts) for k in range(2)]
        completions = {done.id: done for done in machine.run([*requests, Request("other", [3, 4], sampling, 0)])}
        for i, shares in enumerate(expected):
            for k in range(2):
                assert completions[f"{i}/{k}"].probabilities == pytest.approx(shares, rel=1e-4)
        assert completions["other"].probabilities == ()


def test_the_request_ends_where_the_digit_comes():
    item = next(expected_items([RESPONSE], [], CHAT, FIRST))
    request = item.request(CHAT)
    assert bytes(request.ids[1:]).endswith(b"So.Score: ") and request.named == tuple(b"012345")
    assert item.sampling.max_new_tokens == 1
    assert score_tokens(CHAT) == ([*b"Score: "], tuple(b"012345"))
    with pytest.raises(UserError, match=r'set judge\.score = "sampled"'):
        score_tokens(SimpleNamespace(completion_ids=lambda text: [7, 0]))


@pytest.mark.parametrize(
    ("text", "place"),
    [("Fine: 3 of 4 hold.\nScore: 4", 26), ("Score: 1 is too low.\nFinal score: 2/5", 34), ("**Score:** 5", 11)],
)
def test_behind_reasons_the_digit_is_the_verdicts(text, place):
    """Digits and labels in the reasons are ignored."""
    ids = [*text.encode(), 0]
    judgment = {"id": "p/r0/j0", "response_id": "p/r0", "prompt_id": "p", "index": 0, "score": 1, "ids": ids}
    failed = judgment | {"id": "p/r0/j1", "index": 1, "score": None, "text": "?"}
    rows = [judgment | {"text": text}, failed]
    (item,) = expected_items([RESPONSE], rows, CHAT, Judge(verdict_position="last", score="expected"))
    assert item.begun == tuple(ids[:place])
    assert item.record == {"id": "p/r0/j0/e", "response_id": "p/r0", "prompt_id": "p", "index": 0}


def test_the_most_uncertain_response_is_judged():
    # The two rows of r1 have 0.5 within them and 1 between them.
    given = [("p/r0", 2.5, 1.0), ("p/r1", 2.0, 0.5), ("p/r1", 4.0, 0.5), ("p/r2", None, None)]
    rows = [dict(zip(("response_id", "score", "variance"), row, strict=True)) for row in given]
    variances = spreads(rows)
    assert variances == {"p/r0": 1, "p/r1": Fraction(3, 2)}
    responses = [response(1, i, f"text {i}") | {"id": f"p/r{i}"} for i in range(3)]
    assert [row["id"] for row in most_uncertain(responses, variances, take_first)] == ["p/r1"]
    judgments = {
        f"p/r{i}": [{"text": "a", "score": 0, "index": 0}, {"text": "b", "score": 5 * (i == 0), "index": 1}]
        for i in range(2)
    }
    for given, name in ((None, "p/r0"), (variances, "p/r1")):  # by the sampled scores; by the expected ones
        (row,) = choose_meta_judged(responses, judgments, make_settings(), 1, given)
        assert row["response_id"] == name
    own = {"p/r1": [row for row in rows if row["response_id"] == "p/r1"]}
    assert response_scores(own, 2) == {"p/r1": 3}
