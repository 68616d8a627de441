"""Reports of accuracy against cost, from units that measured one method at one ratio each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jtok.launch.unit import read_done

Record = Mapping[str, Any]

#: What a reader of measured times should know.
TIMES = "Times are of the machine as it was while each unit ran: compare them only if nothing else ran there."


def read_outputs(workdirs: Mapping[str, Path], file: str) -> dict[str, Any]:
    """What units printed as JSON into `file`, by the unit's name."""
    return {name: json.loads((workdir / file).read_text()) for name, workdir in workdirs.items()}


def config_argument(workdirs: Mapping[str, Path]) -> str:
    """The part after the colon of the units' --config=FILE.py:ARGUMENT, or "" where nothing does."""
    for workdir in workdirs.values():
        for word in (read_done(workdir) or {"command": ()})["command"]:
            if word.startswith("--config="):
                return word.partition(":")[2]
    return ""


def measured_rows(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """A row for every unit: accuracy, what it lost against the unreduced model, and cost."""
    whole = next((record for record in records.values() if record["method"] == "none"), None)
    rows = []
    for name, record in records.items():
        row = {"unit": name, "method": record["method"], "keep": record["keep"], "images": record["total"]}
        row |= {"accuracy (%)": 100 * record["accuracy"], "points lost": None, "GMACs": record["gmacs"]}
        row |= {"GMACs saved (%)": None, "batch of 8 (ms)": record["latency_ms_b8"]["median"]}
        if whole:
            row["points lost"] = 100 * (whole["accuracy"] - record["accuracy"])
            row["GMACs saved (%)"] = 100 * (1 - record["gmacs"] / whole["gmacs"])
        rows.append(row)
    return rows


def claim_rows(methods: Sequence[str], measured: Mapping[tuple[str, str, str], float]) -> list[dict[str, Any]]:
    """What the papers of `methods` claim, beside what was measured; empty where that setting was not.

    measured: (method, model, setting) -> the claim's metric, as measured on that model in that setting.
    """
    from jtok.methods import catalogue

    rows = []
    for method in dict.fromkeys(methods):
        for claim in catalogue.find(method).claims if method != "none" else ():
            row = {"method": method, "model": claim.model, "setting": claim.setting, "metric": claim.metric}
            value = measured.get((method, claim.model, claim.setting))
            rows.append(row | {"claimed": claim.value, "measured": value, "GMACs claimed": claim.gmacs})
    return rows
