"""Guards of judge pairs against every choice of pairs; the worked cases are tests/golden/guard-*.toml."""

from collections import Counter
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from judging.judge_pairs import guarded
from judging.scores import Reason, exact, seeded_draw
from stages.settings import Guards

shares = st.sampled_from([0.15, 0.2, 0.25, 0.4, 0.5, 0.7, 1.0])
scores = st.lists(st.tuples(*[st.sampled_from([0, 1, 3, 4.5, 5, 5, 5])] * 2), max_size=12)


def stay(scored: dict[str, tuple], actor_pairs: int, guards: Guards, seed: int = 0) -> list[str]:
    """The names whose pair stays, of pairs with these (chosen, rejected) scores."""
    made = {name: {"chosen_id": f"{name}/c", "rejected_id": f"{name}/r"} for name in scored}
    rows = {
        name: [{"id": f"{name}/{s}", "score": x} for s, x in zip("cr", own, strict=True)]
        for name, own in scored.items()
    }
    contests = {name: SimpleNamespace(judgments=own) for name, own in rows.items()}
    kept = guarded(made | {"none": Reason.EQUAL_ELO}, contests, actor_pairs, guards, seeded_draw(seed, 1))
    assert list(kept) == [*scored, "none"] and kept["none"] is Reason.EQUAL_ELO
    return [name for name, pair in kept.items() if not isinstance(pair, Reason)]


@settings(max_examples=150)
@given(scores, st.integers(0, 20), shares, shares, st.booleans())
def test_as_many_pairs_stay_as_the_guards_allow(own, actor_pairs, of_all, of_score, distinct):
    scored = {f"p{i}": pair for i, pair in enumerate(own)}
    guards = Guards(of_all, of_score, distinct)
    kept = stay(scored, actor_pairs, guards)
    backwards = stay(dict(reversed(scored.items())), actor_pairs, guards)
    assert set(kept) == set(backwards)
    allowed = [chosen for chosen, rejected in own if not distinct or chosen != rejected]

    def fits(counts) -> bool:
        total, share = sum(counts), exact(of_score)
        within = not total or Fraction(total, total + actor_pairs) <= exact(of_all)
        return within and all(count <= share * total for count in counts)

    choices = product(*(range(count + 1) for count in Counter(allowed).values()))
    assert len(kept) == max(sum(counts) for counts in choices if fits(counts))
    assert fits(Counter(scored[name][0] for name in kept).values())
    assert all(scored[name][0] != scored[name][1] for name in kept) or not distinct


def test_the_seed_draws_which_pairs_stay():
    scored = {f"p{i}": (4, 2) for i in range(20)}
    kept = [stay(scored, 10, Guards(max_judge_pair_share=0.5), seed) for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2] and [*map(len, kept)] == [10, 10, 10]
