"""What tokens may see, against the rule written out token by token."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from procreward.engine.language.kv import AttentionPlan, KVCache, plan_attention, score_bias
from tests.engine.text_models import random_tree


def _cache(valid: torch.Tensor, used: int) -> KVCache:
    full = bool(valid[:, :used].all())
    return KVCache(keys=[], values=[], valid=valid, used=used, full=full)


def _expected(
    before: torch.Tensor, valid: torch.Tensor, tree: torch.Tensor, row: int, token: int
) -> list[bool]:
    """What one token sees: the columns before the call, then those of the call."""
    first = valid.shape[1] - tree.shape[-1]  # column of the first node
    seen = before[row].tolist()
    for column in range(valid.shape[1]):
        if token < first or column < first:
            allowed = column <= token
        else:
            allowed = bool(tree[row, token - first, column - first])
        seen.append(column == token or (allowed and bool(valid[row, column])))
    return seen


def _allowed(plan: AttentionPlan, row: int, groups: int) -> list[list[bool]]:
    """What a plan lets the tokens of a row see."""
    result = []
    for part in plan.parts:
        seen = torch.ones(1, 1, part.tokens, part.end, dtype=torch.bool)
        if part.causal:
            seen = seen.tril()
        if part.bias is not None:
            assert not part.causal
            heads = groups if part.packed else 1
            seen = (part.bias == 0).view(-1, heads, part.tokens, part.end)
            assert torch.equal(seen, seen[:, :1].expand_as(seen))
        beyond = [False] * (plan.end - part.end)
        result += [[*line, *beyond] for line in seen[row % len(seen), 0].tolist()]
    return result


@given(
    batch=st.integers(1, 3),
    used=st.integers(0, 4),
    tokens=st.integers(1, 6),
    nodes=st.integers(0, 6),
    groups=st.sampled_from([1, 2]),
    one_tree=st.booleans(),
    seed=st.integers(0, 10**6),
    holes=st.booleans(),
    keep=st.integers(1, 6),
)
def test_a_plan_lets_every_token_see_what_the_rule_says(
    batch: int,
    used: int,
    tokens: int,
    nodes: int,
    groups: int,
    one_tree: bool,
    seed: int,
    holes: bool,
    keep: int,
) -> None:
    nodes = min(nodes, tokens)
    generator = torch.Generator().manual_seed(seed)
    chance = 0.7 if holes else 1.1
    before = torch.rand(batch, 12, generator=generator) < chance
    valid = torch.rand(batch, tokens, generator=generator) < chance
    seeds = [seed] * batch if one_tree else range(seed, seed + batch)
    trees = torch.stack([random_tree(nodes, seed=each)[1] for each in seeds])
    plan = plan_attention(
        _cache(before, used),
        tokens,
        valid=None if bool(valid.all()) else valid,
        tree=None if nodes == 0 else trees[0] if one_tree else trees,
        groups=groups,
        dtype=torch.float32,
    )
    assert (plan.start, plan.end) == (used, used + tokens)
    kept = min(keep, tokens)
    last = plan.last(kept, groups=groups, like=torch.empty(0))
    for whole, first in ((plan, 0), (last, tokens - kept)):
        for row in range(batch):
            expected = [
                _expected(before[:, :used], valid, trees, row, token)
                for token in range(first, tokens)
            ]
            assert _allowed(whole, row, groups) == expected


def test_no_mask_is_made_where_none_is_needed() -> None:
    def plan(cache: KVCache, tokens: int) -> list[tuple[bool, bool]]:
        made = plan_attention(cache, tokens, valid=None, tree=None, groups=2, dtype=torch.float32)
        return [(part.causal, part.bias is not None) for part in made.parts]

    full, holed = torch.ones(1, 9, dtype=torch.bool), torch.tensor([[True, False, True] * 3])
    assert plan(_cache(full, 0), 5) == [(True, False)]
    assert plan(_cache(full, 4), 1) == [(False, False)]
    assert plan(_cache(full, 4), 2) == [(False, True)]
    assert plan(_cache(holed, 4), 1) == [(False, True)]


def test_scores_of_unseen_columns_become_minus_infinity() -> None:
    bias = score_bias(torch.tensor([[True, False, True]]), torch.float32)
    assert bias.tolist() == [[0.0, -math.inf, 0.0]]
