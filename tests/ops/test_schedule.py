"""Schedules: what a request means, that counts never rise, what is refused, and that all staged methods agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.ops import schedule
from jtok.ops.schedule import Asked, make
from jtok.target import Target

TARGET = Target(depth=12, grid=(14, 14), width=16, heads=2, classes=5, layers=12, language_width=16)
PATCHES = TARGET.patches
STAGED = [name for name, m in catalogue.methods().items() if set(Asked.__annotations__) <= set(m.options)]
#: Methods whose last count may miss a share by one token that they make of what they drop, or a point that they add.
BESIDE = {"evit": 1, "ats": 1}
#: Methods that put back at the end what they have dropped: the count before that is the one asked for.
RESTORES = {"token-cropr"}


def left(name: str, **asked) -> list[int]:
    """Patches after each site of a method that removes some."""
    plan = catalogue.make_plan(name, TARGET, **asked)
    rows = [(before, after) for _, before, after in plan.counts(PATCHES)]
    return [after for before, after in rows if after < before]


def placed(name: str, **asked) -> list[int]:
    """Blocks (or layers) in which it removes patches."""
    plan = catalogue.make_plan(name, TARGET, **asked)
    return [
        site.layer for site, (_, before, after) in zip(plan.sites, plan.counts(PATCHES), strict=True) if after < before
    ]


def test_the_staged_methods_are_all_there():
    assert STAGED == [
        "atc", "ats", "dpc-knn", "dynamicvit", "evit", "kmedoids", "patchmerger", "pyramiddrop", "random", "sinkhorn",
        "sit", "sparsevlm", "token-cropr", "token-pooling", "tome", "topk", "uniform-grid",
    ]  # fmt: skip


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("tokens", [24, 49, 150])
def test_tokens_are_what_is_left(name, tokens):
    after = left(name, tokens=tokens)
    assert after == sorted(after, reverse=True)
    assert after[-1] == tokens or name == "ats" and tokens - 1 <= after[-1] <= tokens


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_keep_is_the_share_left(name, keep):
    assert 0 <= left(name, keep=keep)[-1] - keep * PATCHES <= BESIDE.get(name, 0)


@pytest.mark.parametrize("name", STAGED)
def test_rates_are_shares_of_the_initial_patches_in_the_blocks(name):
    blocks, rates = (2, 5, 7, 9), (0.75, 0.5, 0.5, 0.25)
    after = left(name, blocks=blocks, rates=rates)
    assert placed(name, blocks=(2, 5), rates=(0.75, 0.5)) == [2, 5]
    assert all(0 <= a - b <= BESIDE.get(name, 0) for a, b in zip(after, [147, 98, 49], strict=True))


@pytest.mark.parametrize("name", STAGED)
def test_r_is_removed_in_each_block(name):
    after = left(name, blocks=(3, 6, 9), r=20)
    assert placed(name, blocks=(3, 6, 9), r=20) == [3, 6, 9]
    assert all(0 <= b - a <= (name == "ats") for a, b in zip(after, [176, 156, 136], strict=True))
    assert placed(name, blocks=(3, 6, 9), r=[20, 0, 5]) == [3, 9]


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_spread_over_the_depth(name):
    depth = TARGET.depth - 2 if name in RESTORES else TARGET.depth  # of the blocks that it may be placed in
    assert placed(name, stages=2) == list(schedule.spread_blocks(depth, 2))


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rates": (0.5, 0.6), "blocks": (2, 4)}, "must not rise"),
        ({"rates": (0.5, 0.0), "blocks": (2, 4)}, "above 0 and at most 1"),
        ({"rates": (1.5, 0.5), "blocks": (2, 4)}, "above 0 and at most 1"),
        ({"rates": (0.5,), "blocks": (2, 4)}, "1 numbers for 2 blocks"),
        ({"blocks": (4, 2)}, "rising numbers"),
        ({"blocks": (2, 2)}, "rising numbers"),
        ({"blocks": (2, 12)}, "rising numbers"),
        ({"blocks": (-1, 2)}, "rising numbers"),
        ({"blocks": ()}, "rising numbers"),
        ({"blocks": (2, 4), "stages": 2}, "leave it out"),
        ({"stages": 0}, "0 stages"),
        ({"tokens": 197}, "197 tokens"),
        ({"tokens": 0}, "0 tokens"),
        ({"r": 196}, "more than one block can remove"),
        ({"r": (13, 1)}, "may be a ramp or two blocks"),
        ({"r": -3}, "whole numbers from 0"),
        ({"r": (5, 5, 5), "blocks": (2, 4)}, "3 numbers for 2 blocks"),
        ({"r": 3, "tokens": 5}, "say the same thing"),
        ({"rates": (0.5, 0.2), "keep": 0.5}, "say the same thing"),
    ],
)
def test_refused_in_one_sentence(name, asked, words):
    with pytest.raises(UserError, match=words) as error:
        catalogue.make_plan(name, TARGET, **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("evit", {"count_rule": "current", "rates": (0.7, 0.5, 0.3)}, "ignore rates"),
        ("evit", {"count_rule": "current", "tokens": 50}, "ignore tokens"),
        ("evit", {"count_rule": "later"}, "initial or current"),
        ("evit", {"tokens": 1}, "at least two tokens"),
        ("atc", {"where": "every-block", "blocks": (2, 4)}, "ignore blocks"),
        ("atc", {"where": "nowhere"}, "stages or every-block"),
        ("tome", {"matching": "kth", "r": 13}, "takes no r"),
        ("tome", {"matching": "kth"}, "kth matching leaves"),
        ("tome", {"blocks": (6,), "keep": 0.25}, "at most half"),
        ("sparsevlm", {"tokens": 1}, "cannot leave 1 of 196"),
        ("sparsevlm", {"tokens": 50, "average_tokens": 60}, "say the same thing"),
        ("topk", {"r": 90}, "leaves none"),
    ],
)
def test_a_method_refuses_what_it_would_ignore_or_miss(name, asked, words):
    with pytest.raises(UserError, match=words):
        catalogue.make_plan(name, TARGET, **asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "keep 0.5"),
        ({"keep": 0.25}, "keep 0.25"),
        ({"tokens": 64}, "tokens 64"),
        ({"r": 13}, "r 13"),
        ({"rates": (0.7, 0.5), "blocks": (2, 4)}, "rates (0.7, 0.5)"),
    ],
)
def test_a_plan_says_what_was_asked(asked, said):
    assert catalogue.make_plan("tome", TARGET, **asked).asked == said


def test_every_kth_token_in_one_block():
    assert left("tome", matching="kth", blocks=(6,), keep=0.5) == [98]


def test_options_are_listed_with_their_defaults():
    options = catalogue.find("topk").options
    assert options == dict.fromkeys(("tokens", "rates", "r", "blocks", "stages"))


@pytest.mark.parametrize(
    ("r", "removed"),
    [
        (8, (8, 8, 8, 8)),
        ((8, 4), (8, 4, 0, 0)),
        ((8,), (8, 0, 0, 0)),
        ((8, 1, 0), (8, 1, 0, 0)),
        ((8, 0), (8, 0, 0, 0)),
        ((6, "falling"), (12, 8, 4, 0)),
        ((6, "rising"), (0, 4, 8, 12)),
        ((6, -1), (12, 8, 4, 0)),
        ((6, -1.0), (12, 8, 4, 0)),
        ((1, 2, 3, 4, 0), (1, 2, 3, 4)),
    ],
)
def test_r_reads_the_same_as_a_list_or_a_tuple(r, removed):
    assert schedule.removals(r, 4) == removed
    assert schedule.removals(json.loads(json.dumps(r)), 4) == removed


@pytest.mark.parametrize("r", [(8, 1), (8, 1.0), (8, 0.5), (8, -2), (8, "up"), "8", 8.5, True, (-8, "falling"), [[8]]])
def test_an_r_that_says_nothing_clear_is_refused(r):
    with pytest.raises(UserError, match="^r = ") as error:
        schedule.removals(r, 4)
    assert "\n" not in str(error.value)


def test_the_ambiguous_pair_says_how_to_write_either():
    with pytest.raises(UserError, match=r"\(8, 'rising'\) for the ramp and \(8, 1, 0\) for the blocks"):
        schedule.removals((8, 1), 4)


def test_an_unknown_option_of_a_schedule_is_refused():
    with pytest.raises(UserError, match="no option 'rate'"):
        catalogue.find("topk").plan(TARGET, rate=0.5)


SIZES = {"patches": st.integers(1, 700), "depth": st.integers(4, 40)}


@settings(deadline=None)
@given(**SIZES, data=st.data())
def test_counts_never_rise_and_end_as_asked(patches, depth, data):
    fall = data.draw(st.sampled_from(["geometric", "even", "flat"]))
    blocks = sorted(data.draw(st.sets(st.integers(1, depth - 1), min_size=1)))
    tokens = data.draw(st.integers(1, patches))
    made = make(patches, depth, 0.5, {"tokens": tokens, "blocks": blocks}, fall=fall)
    assert list(made.counts) == sorted(made.counts, reverse=True) and (made.counts or (patches,))[-1] == tokens
    assert set(made.blocks) <= set(blocks) and len(made.blocks) == len(made.counts) == len(made.shares)
    assert all(removed >= 0 for removed in made.removals(patches)) and sum(made.removals(patches)) == patches - tokens


@settings(deadline=None)
@given(**SIZES, keep=st.floats(1e-3, 1.0), whole=st.sampled_from([round, schedule.truncated]))
def test_a_share_ends_at_its_rounded_count(patches, depth, keep, whole):
    made = make(patches, depth, keep, {}, whole=whole)
    assert made.counts[-1] == max(1, whole(patches * keep))
    assert list(made.counts) == sorted(made.counts, reverse=True)


@settings(deadline=None)
@given(**SIZES, data=st.data())
def test_halving_blocks_reach_every_count_that_halving_can(patches, depth, data):
    tokens = data.draw(st.integers(1, patches))
    n, reach = depth - 1, patches
    for _ in range(n):
        reach -= reach // 2
    if tokens < reach:
        with pytest.raises(UserError, match="at most half"):
            make(patches, depth, 0.5, {"tokens": tokens}, range(1, depth), fall="even", halves=True)
        return
    made = make(patches, depth, 0.5, {"tokens": tokens}, range(1, depth), fall="even", halves=True)
    before = (patches, *made.counts)
    assert before[-1] == tokens
    assert all(a - b <= a // 2 for a, b in zip(before, before[1:], strict=False))


@settings(deadline=None)
@given(**SIZES, data=st.data())
def test_r_removes_what_it_says_while_it_can(patches, depth, data):
    r = [*data.draw(st.lists(st.integers(0, patches), min_size=1, max_size=depth - 1)), 0, 0]  # no pair: no ramp
    halves = data.draw(st.booleans())
    first = next((x for x in r if x), 0)
    refused = first > patches // 2 if halves else sum(r) >= patches
    if refused:
        with pytest.raises(UserError, match="remove"):
            make(patches, depth, 0.5, {"r": r}, range(1, depth), halves=halves)
        return
    made = make(patches, depth, 0.5, {"r": r}, range(1, depth), halves=halves)
    now, counts = patches, []
    for x in r:
        now -= min(x, now // 2) if halves else x
        counts.append(now)
    assert (made.counts or (patches,))[-1] == counts[-1]
    assert not halves or min(made.counts, default=1) >= 1
