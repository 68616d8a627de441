"""The `.jtok` file: an image as the ids of its tiles, a few hundred bytes to a few thousand.

All numbers little-endian. Header: magic (4 bytes), version (1), length of the whole file (4), fingerprint of the
tokenizer (8), height, width, tile, overlap in pixels (2 each), bits of an id (1), least and most tokens of a tile (2
each). Then one stream of bits, the most significant of each number first, zero-padded to a whole byte: the
token count of each tile less the least, in as many bits as the largest needs; the ids of all tiles. Then the CRC-32 of
everything before it.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
from jaxtyping import Int

from jtok.errors import UserError
from jtok.tokenizers.tiling import Tiling

MAGIC = b"\x8aJTK"  # the first byte occurs in no text, and exposes a copy that lost the eighth bit
VERSION = 1
LONGEST_SIDE = 2**16 - 1
_HEADER = struct.Struct("<4sBI8s4HB2H")
_CRC = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Container:
    """Contents of a `.jtok` file. counts: tokens of each tile, int32 [T]. ids: of all tiles, concatenated, int32
    [sum of counts]. bits: of an id."""

    tiling: Tiling
    fingerprint: bytes
    bits: int
    counts: Int[np.ndarray, " T"]
    ids: Int[np.ndarray, " N"]

    def check_tokenizer(self, fingerprint: bytes, name: str) -> None:
        """Raises UserError unless the ids are of the tokenizer with this fingerprint; `name` is that of the file."""
        if fingerprint != self.fingerprint:
            raise UserError(
                f"'{name}' was made by the tokenizer {self.fingerprint.hex()}, but the one given is "
                f"{fingerprint.hex()}: give the one that made it by --tokenizer=FILE."
            )

    def padded(self, longest: int) -> Int[np.ndarray, "T K"]:
        """The ids of each tile in its row, followed by zeros."""
        ids = np.zeros((len(self.counts), longest), np.int32)
        ids[np.arange(longest) < self.counts[:, None]] = self.ids
        return ids


def pack(c: Container) -> bytes:
    """The bytes of the file. Raises UserError for an image with a side above 65535 pixels."""
    t = c.tiling
    if max(t.height, t.width) > LONGEST_SIDE:
        raise UserError(f"an image of {t.height} x {t.width} pixels is too large: up to {LONGEST_SIDE} a side.")
    least, most = int(c.counts.min()), int(c.counts.max())
    stream = np.concatenate([_to_bits(c.counts - least, (most - least).bit_length()), _to_bits(c.ids, c.bits)])
    payload = np.packbits(stream).tobytes()
    length = _HEADER.size + len(payload) + _CRC.size
    where = (t.height, t.width, t.tile, t.overlap)
    head = _HEADER.pack(MAGIC, VERSION, length, c.fingerprint, *where, c.bits, least, most)
    return head + payload + _CRC.pack(zlib.crc32(head + payload))


def unpack(data: bytes, name: str) -> Container:
    """Inverse of `pack`; `name` is the file's, for messages.

    Raises UserError, one sentence each, for a foreign file, another version, a truncated and a corrupt file.
    """
    _check_whole(data, name)
    _, _, _, fingerprint, height, width, tile, overlap, bits, least, most = _HEADER.unpack_from(data)
    corrupt = UserError(f"'{name}' is corrupt: its header does not match its contents; make it again.")
    try:
        tiling = Tiling(height, width, tile, overlap)
    except UserError:
        raise corrupt from None
    payload = np.frombuffer(data, np.uint8, len(data) - _HEADER.size - _CRC.size, _HEADER.size)
    each, available = (most - least).bit_length(), 8 * len(payload)
    # sizes are checked before anything is allocated
    if not 1 <= least <= most or not 1 <= bits <= 31 or tiling.count * (each + least * bits) > available:
        raise corrupt
    stream = np.unpackbits(payload)
    counts = least + _to_numbers(stream[: tiling.count * each], tiling.count, each)
    total, start = int(counts.sum()), tiling.count * each
    if counts.max() > most or -(-(start + total * bits) // 8) != len(payload):
        raise corrupt
    ids = _to_numbers(stream[start : start + total * bits], total, bits)
    return Container(tiling, fingerprint, bits, counts, ids)


def _check_whole(data: bytes, name: str) -> None:
    """Magic, version, length and checksum."""
    if not data:
        raise UserError(f"'{name}' is empty: give a file made by `jtok tokenize`.")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise UserError(f"'{name}' is no .jtok file: give one made by `jtok tokenize`.")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise UserError(
            f"'{name}' is a .jtok file of version {data[len(MAGIC)]}, and this jtok reads version {VERSION}: "
            "use the jtok that made it, or make it again."
        )
    if len(data) < _HEADER.size:
        raise UserError(f"'{name}' is truncated: it ends within its header, after {len(data)} bytes.")
    length = _HEADER.unpack_from(data)[2]
    if len(data) < length:
        raise UserError(f"'{name}' is truncated: it has {len(data)} of its {length} bytes.")
    if len(data) > length or zlib.crc32(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise UserError(f"'{name}' is corrupt: its checksum does not match its contents; copy or make it again.")


def _to_bits(numbers: Int[np.ndarray, " n"], width: int) -> np.ndarray:
    """[n * width] zeros and ones."""
    shifts = np.arange(width - 1, -1, -1)
    return ((numbers[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)


def _to_numbers(bits: np.ndarray, n: int, width: int) -> Int[np.ndarray, " n"]:
    shifts = np.arange(width - 1, -1, -1)
    return (bits.reshape(n, width).astype(np.int32) << shifts).sum(1, dtype=np.int32)
