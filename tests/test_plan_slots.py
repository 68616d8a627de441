"""`jtok plan` names the slots that a plan fills."""

from __future__ import annotations

from jtok.commands.plan_ import table
from jtok.commands.slots import slots_of
from jtok.methods import catalogue
from jtok.target import Target

TARGET = Target(4, (3, 4), 16, layers=6, language_width=32)


def test_slots_are_described_in_their_order():
    plan = catalogue.make_plan("avisc", TARGET, beta=0.2) + catalogue.make_plan("var-attention-sink", TARGET, tau=7.0)
    slots = slots_of(plan)
    assert list(slots) == ["attention", "decoding"]
    assert slots["attention"] == "RedistributeSinks(tau=7.0, rho=0.5, summ=0.2, p=0.6)"
    assert slots["decoding"].startswith("Calibrate(") and "beta=0.2" in slots["decoding"]


def test_the_command_lists_them():
    assert table("scenes", "topk", 0.5, {})[0]["slots"] == {}
    assert table("scenes", "downsample-image", 0.25, {})[0]["slots"]["inputs"].startswith("Resize(")
    assert table("shipped", "vtw", None, {})[0]["slots"]["layers"].startswith("Withdraw(")
