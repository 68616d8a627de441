"""The Pareto plot and the report: what is drawn, what is told, and that files appear whole or not at all."""

import base64
import html.parser
import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jtok.errors import UserError
from jtok.registry import Claim
from jtok.viz import draw_pareto, save_figure, write_report
from jtok.viz.files import write_whole
from jtok.viz.pareto import group_lines, line_name, line_styles
from jtok.viz.report import accuracy_table, cost_table, run_lengths

SPREAD = {"median": 2.0, "p10": 1.5, "p90": 3.0}


def record(method, keep, accuracy, family="vit-merge", **more):
    base = {"method": method, "family": family, "training": "none", "trained": False, "keep": keep}
    return {**base, "accuracy": accuracy, "gmacs": keep, "gmacs_unreduced": 1.0, "latency_ms_b1": SPREAD, **more}


RECORDS = [
    record("none", 1.0, 0.95),
    record(
        "tome",
        0.5,
        0.9,
        tokens_per_block=[64, 64, 32],
        correct=90,
        total=100,
        title="Merging",
        paper="arXiv:2210.09461",
    ),
    record("tome", 0.3, 0.7, latency_ms_b1=None),
    record("random", 0.5, 0.6, family="baseline"),
    record("random", 0.3, 0.75, family="baseline"),
    record("sit", 0.5, 0.2, training="required"),
    record("sit", 0.5, 0.85, training="required", trained=True),
]


def test_lines_are_named_after_methods_and_whether_they_were_trained():
    assert list(group_lines(RECORDS)) == ["unreduced", "random", "sit (trained)", "sit (untrained)", "tome"]
    assert line_name(record("evit", 0.5, 0.9, training="optional")) == "evit"


def test_baselines_are_dashed_and_grey_and_trained_methods_filled():
    styles = line_styles(group_lines(RECORDS))
    assert styles["random"]["linestyle"] == "--" and len(set(matplotlib.colors.to_rgb(styles["random"]["color"]))) == 1
    assert styles["sit (trained)"]["color"] == styles["sit (untrained)"]["color"] != styles["tome"]["color"]
    assert "markerfacecolor" not in styles["sit (trained)"]
    assert styles["tome"]["markerfacecolor"] == "white"


def test_no_two_of_twenty_methods_look_alike():
    records = [record(f"m{i:02}", 0.5, 0.5) for i in range(20)] + [
        record(f"b{i}", 0.5, 0.5, "baseline") for i in range(6)
    ]
    looks = {(str(s["color"]), s["marker"]) for s in line_styles(group_lines(records)).values()}
    assert len(looks) == 26


def test_the_plot_holds_every_point_that_was_measured():
    left, right = draw_pareto(RECORDS).axes
    cost, time = ({line.get_label(): line for line in axes.get_lines()} for axes in (left, right))
    np.testing.assert_allclose(cost["tome"].get_xydata(), [[0.5, 90], [0.3, 70]])
    np.testing.assert_allclose(time["tome"].get_xydata(), [[2.0, 90]])
    assert cost["unreduced"].get_marker() == "*"
    assert left.get_legend() is None and len(draw_pareto(RECORDS).legends) == 1


def test_a_panel_without_measurements_says_so():
    *_, right = draw_pareto(RECORDS, batch=8).axes
    assert [text.get_text() for text in right.texts] == ["not measured"]


def test_drawing_leaves_no_global_state_and_repeats_byte_for_byte(tmp_path):
    before = dict(matplotlib.rcParams), matplotlib.get_backend()
    one, two = (save_figure(tmp_path / name, draw_pareto(RECORDS), dpi=40) for name in ("a.png", "b.png"))
    assert one.read_bytes() == two.read_bytes()
    assert Image.open(one).size == (540, 224)
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == before


def test_nothing_to_plot_is_an_error():
    with pytest.raises(UserError, match="nothing to plot"):
        draw_pareto([])


def rows_of(text):
    body = text.split("<tbody>")[1]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_the_best_reducer_of_every_column_is_bold_but_never_the_unreduced_model():
    rows = {row[0]: row[1:] for row in rows_of(accuracy_table(RECORDS))}
    assert rows["unreduced"] == ["95.0", "95.0"]
    assert rows["tome"] == ["<b>90.0</b>", "70.0"]
    assert rows["random"] == ["60.0", "<b>75.0</b>"]
    assert rows["sit (trained)"] == ["85.0", ""]


def test_costs_are_told_and_missing_values_are_empty():
    full, bare = (row for row in rows_of(cost_table(RECORDS)) if row[0] == "tome")
    assert full[:7] == ["tome", "64 \N{MULTIPLICATION SIGN}2, 32", "0.5", "90.0", "90 / 100", "0.5", "50"]
    assert "2.00 [1.50\N{EN DASH}3.00]" in full
    assert bare[1] == bare[4] == "" and bare[-5:] == [""] * 5


def test_run_lengths():
    assert run_lengths([3, 3, 2, 3]) == "3 \N{MULTIPLICATION SIGN}2, 2, 3"
    assert run_lengths(None) == run_lengths([]) == ""


class Links(html.parser.HTMLParser):
    """Collects what a page would fetch, and its pictures."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def report(path, **more):
    picture = Image.fromarray(np.full((3, 5, 3), 9, np.uint8))
    return write_report(
        path,
        title="Sweep <b>",
        config={"seed": 3},
        records=RECORDS,
        pictures=[("kept & dropped", picture), ("plot", draw_pareto(RECORDS))],
        claims={"tome": [Claim("ViT-L/16", "r=8", 85.4, gmacs=31.0)], "absent": [Claim("X-model", "y", 1.0)]},
        notes=["a note"],
        **more,
    )


def test_a_report_needs_nothing_beside_itself(tmp_path):
    text = report(tmp_path / "r.html").read_text()
    links = Links(text)
    assert len(links.fetched) == 2 and all(link.startswith("data:image/png;base64,") for link in links.fetched)
    assert not links.tags & {"link", "iframe", "object", "base"}
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert Image.open(io.BytesIO(base64.b64decode(links.fetched[0].split(",")[1]))).size == (5, 3)


def test_a_report_tells_how_it_was_made_and_escapes_what_it_is_told(tmp_path):
    how = {
        "command": "jtok sweep --x=<1>",
        "versions": {"jax": "0.10.2"},
        "commit": "abc123",
        "scale": "Toy scale: 64 px.",
    }
    text = report(tmp_path / "deep" / "r.html", **how).read_text()
    for told in ("jtok sweep --x=&lt;1&gt;", "jax 0.10.2", "commit abc123", "Toy scale: 64 px.", "&quot;seed&quot;: 3"):
        assert told in text
    assert "Sweep &lt;b&gt;" in text and "Sweep <b>" not in text
    for told in ("ViT-L/16", "85.4", "0.5: 90.0, 0.3: 70.0", "arXiv:2210.09461", "a note"):
        assert told in text
    assert "X-model" not in text  # a claim of a method that was not measured


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="cannot write .*r.html.*No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_an_error_of_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file" / "r.html")
