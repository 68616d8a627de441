"""The .jtok file: what is packed comes back, and files that are not whole are named for what they are."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.tokenizers.container import MAGIC, Container, pack, unpack
from jtok.tokenizers.tiling import Tiling


@st.composite
def containers(draw) -> Container:
    tile = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, tile // 2))
    tiling = Tiling(draw(st.integers(1, 90)), draw(st.integers(1, 90)), tile, overlap)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits, most = draw(st.integers(1, 31)), draw(st.integers(1, 300))
    if tiling.count * most > 50_000:
        most = 1
    counts = rng.integers(draw(st.integers(1, most)), most + 1, tiling.count).astype(np.int32)
    ids = rng.integers(0, 2**bits, counts.sum()).astype(np.int32)
    return Container(tiling, rng.bytes(8), bits, counts, ids)


@settings(max_examples=60, deadline=None)
@given(containers())
def test_what_is_packed_comes_back(c):
    unpacked = unpack(pack(c), "x")
    assert (unpacked.tiling, unpacked.fingerprint, unpacked.bits) == (c.tiling, c.fingerprint, c.bits)
    np.testing.assert_array_equal(unpacked.counts, c.counts)
    np.testing.assert_array_equal(unpacked.ids, c.ids)


def small() -> Container:
    counts = np.array([1, 3, 2, 1], np.int32)
    return Container(Tiling(60, 60, 32, 4), b"12345678", 16, counts, np.arange(7, dtype=np.int32) * 9000)


def test_a_file_is_small():
    assert len(pack(small())) == 30 + -(-(4 * 2 + 7 * 16) // 8) + 4
    same = Container(Tiling(60, 60, 32, 4), b"12345678", 16, np.full(4, 5, np.int32), np.zeros(20, np.int32))
    assert len(pack(same)) == 30 + 40 + 4, "equal counts take no bits"


def test_rows_are_padded():
    np.testing.assert_array_equal(small().padded(4)[1], [9000, 18000, 27000, 0])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_is_noticed(data):
    whole = pack(small())
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(UserError, match="truncated|empty"):
        unpack(whole[:cut], "x")
    changed = bytearray(whole)
    changed[cut] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UserError, match="corrupt|truncated|no .jtok|version"):
        unpack(bytes(changed), "x")


BAD = {
    "a text": (b"hello, this is text", "no .jtok file"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(90), "no .jtok file"),
    "nothing": (b"", "empty"),
    "another version": (MAGIC + b"\x07" + pack(small())[5:], "version 7, and this jtok reads version 1"),
    "half": (pack(small())[:40], "truncated: it has 40 of its"),
    "half a header": (pack(small())[:12], "truncated: it ends within its header"),
    "trailing bytes": (pack(small()) + b"\0", "corrupt"),
}


@pytest.mark.parametrize("what", BAD)
def test_other_files_are_named(what):
    data, said = BAD[what]
    with pytest.raises(UserError, match=said):
        unpack(data, "photo.jtok")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(17, "<H", 60000), (21, "<H", 0), (23, "<H", 31), (25, "<B", 0), (26, "<H", 0), (28, "<H", 1)],
)
def test_a_header_that_lies_is_noticed_in_spite_of_its_checksum(offset, form, value):
    data = bytearray(pack(small()))
    struct.pack_into(form, data, offset, value)
    struct.pack_into("<I", data, len(data) - 4, zlib.crc32(bytes(data[:-4])))
    with pytest.raises(UserError, match="corrupt"):
        unpack(bytes(data), "x")


def test_ids_of_another_tokenizer_are_refused():
    small().check_tokenizer(b"12345678", "x")
    with pytest.raises(UserError, match="'x' was made by the tokenizer 3132333435363738"):
        small().check_tokenizer(b"87654321", "x")


def test_an_image_too_large_for_the_format_is_refused():
    with pytest.raises(UserError, match="up to 65535"):
        pack(Container(Tiling(1, 70000, 32, 4), b"12345678", 16, np.ones(2500, np.int32), np.zeros(2500, np.int32)))
