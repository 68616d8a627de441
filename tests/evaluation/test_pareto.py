"""The front against its definition; tables and files of records."""

import csv
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jtok.errors import UserError
from jtok.evaluation.sweeps.pareto import front, table, write_csv, write_json


def dominates(a, b):
    no_worse = a["gflops"] <= b["gflops"] and a["accuracy"] >= b["accuracy"]
    return no_worse and (a["gflops"] < b["gflops"] or a["accuracy"] > b["accuracy"])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_front_is_exactly_the_non_dominated_set(pairs):
    points = [{"id": i, "gflops": cost, "accuracy": value} for i, (cost, value) in enumerate(pairs)]
    expected = [p for p in points if not any(dominates(q, p) for q in points)]
    got = front(points)
    assert sorted(p["id"] for p in got) == [p["id"] for p in expected]
    assert [p["gflops"] for p in got] == sorted(p["gflops"] for p in got)


def test_front_reads_the_columns_it_is_told():
    points = [{"ms": 2.0, "psnr": 30.0}, {"ms": 1.0, "psnr": 20.0}, {"ms": 3.0, "psnr": 29.0}]
    assert front(points, cost="ms", value="psnr") == [points[1], points[0]]


@pytest.mark.parametrize("bad", [{}, {"gflops": float("nan")}, {"gflops": "many"}, {"gflops": None}])
def test_front_names_the_column_that_holds_no_number(bad):
    with pytest.raises(UserError, match="'gflops'"):
        front([{"accuracy": 1.0, **bad}])


def rendered(drawn):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def test_table_shows_every_column_and_leaves_missing_values_blank():
    records = [{"method": "tome", "gflops": 1.23456}, {"method": "topk", "images/s": 12345.6}]
    text = rendered(table(records, title="sweep"))
    for piece in ("sweep", "method", "gflops", "images/s", "tome", "1.235", "12346"):
        assert piece in text
    assert "None" not in text
    assert "gflops" not in rendered(table(records, columns=["method"]))


RECORDS = [{"a": np.float32(0.5), "b": jnp.int32(3)}, {"a": float("nan"), "c": "x, y"}]


def test_json_is_strict_and_reads_back(tmp_path):
    path = tmp_path / "new" / "records.json"
    write_json(path, RECORDS)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == [{"a": 0.5, "b": 3}, {"a": None, "c": "x, y"}]


def test_csv_reads_back_with_all_columns(tmp_path):
    path = tmp_path / "records.csv"
    write_csv(path, RECORDS)
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "0.5", "b": "3", "c": ""}, {"a": "", "b": "", "c": "x, y"}]


@pytest.mark.parametrize("write", [write_json, write_csv])
def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, write, monkeypatch):
    path = tmp_path / "records"
    write(path, [{"a": 1}])
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(path, [{"a": 2}])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["records"]
