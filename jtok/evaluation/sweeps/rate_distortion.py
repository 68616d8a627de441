"""Quality against bits per pixel: a tokenizer at fixed and at adaptive lengths, beside JPEG and WebP.

Every point is a whole file's bytes, header and all, on held-out photographs of the same size; PSNR and SSIM (gauss11)
are of 8-bit pictures; `seam` is how much more the error steps where tiles meet (`Tiling.seam`). A codec's point is the
mean over the photographs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image
from rich.table import Table
from scipy.stats import spearmanr

from jtok.data import make_dataset
from jtok.data.photographs import PHOTOGRAPHS, check_split, photograph
from jtok.errors import UserError
from jtok.evaluation.metrics.image_quality import psnr, ssim
from jtok.evaluation.sweeps.pareto import table, write_csv, write_json
from jtok.tokenizers.codec import Codec, check_quality, fewest
from jtok.tokenizers.container import pack
from jtok.training.record import git_commit, make_workdir, versions

Picture = UInt8[np.ndarray, "H W 3"]
Record = dict[str, Any]
MEANT = ("bits_per_pixel", "psnr", "ssim", "tokens", "seam")  # columns of which a codec's point is the mean


def default_config() -> ConfigDict:
    """Every field of a rate-distortion sweep, with defaults; configs change what they need."""
    config = ConfigDict({"task": "rate_distortion"})
    config.sweep = ml_collections.ConfigDict(
        {
            "tokenizer": "shipped",  # or the file of a trained one
            "overlap": 4,  # pixels that neighbouring tiles share
            "split": "test",  # whose photographs are coded
            "shorter": 256,  # their shorter side, pixels
            "tokens": (1, 2, 4, 8, 16, 32),  # a tile, at fixed lengths
            "qualities": (18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 30.0),  # dB asked of every tile
            "jpeg": (1, 5, 10, 20, 35, 50, 70, 85),  # qualities, as Pillow counts them
            "webp": (0, 5, 10, 20, 35, 50, 70, 85),
            "crops": 400,  # of one tile each, for the correlation of counts with the size as PNG
            "title": "Rate and distortion",
        }
    )
    return config


def lossy(picture: Picture, kind: str, quality: int) -> tuple[int, Picture]:
    """(bytes of the whole file, the picture again) of Pillow's JPEG (optimised, 4:2:0) or WebP (method 6)."""
    buffer = io.BytesIO()
    options = {"JPEG": {"optimize": True}, "WEBP": {"method": 6}}[kind]
    Image.fromarray(picture).save(buffer, kind, quality=quality, **options)
    return buffer.tell(), np.asarray(Image.open(buffer).convert("RGB"))


def png_bytes(picture: Picture) -> int:
    """Size as PNG: image complexity for a codec independent of ours."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.tell()


class RateDistortion:
    """The sweep of `config.sweep` with one codec; `run` measures, `tables` and `report` tell.

    Raises UserError for lengths that the tokenizer does not have and qualities out of range, before anything runs.
    """

    def __init__(self, codec: Codec, config: ConfigDict, workdir: str, command: str):
        s = config.sweep
        check_split(s.split)
        for tokens in s.tokens:
            codec.check_tokens(tokens)
        for quality in s.qualities:
            check_quality(quality)
        if s.crops < 3:
            raise UserError(f"a correlation needs at least 3 crops, not {s.crops}.")
        self.codec, self.config, self.command = codec, config, command
        self.workdir: Path = make_workdir(workdir)
        self.records: list[Record] = []
        self.counts: list[Record] = []

    def run(self, say: Callable[[str], None] = print) -> list[Record]:
        """Codes every photograph in every way; records.json and records.csv hold each, counts.json the correlation."""
        s = self.config.sweep
        for name in PHOTOGRAPHS[s.split]:
            picture = photograph(name, s.shorter)
            for made in (*_tokenized(self.codec, picture, s), *_others(picture, s)):
                self.records.append({"photograph": name, **made})
            write_json(self.workdir / "records.json", self.records)
            say(f"{name}: {picture.shape[1]} x {picture.shape[0]} pixels coded")
        write_csv(self.workdir / "records.csv", self.records)
        self.counts = list(count_facts(self.codec, s.split, s.crops, s.qualities, s.shorter))
        write_json(self.workdir / "counts.json", self.counts)
        return self.records

    def tables(self) -> list[Table]:
        """The mean of every point, and what the adaptive counts follow."""
        columns = ("codec", "setting", *MEANT)
        title = f"mean over {len({r['photograph'] for r in self.records})} held-out photographs"
        return [table(means(self.records), columns, title), table(self.counts, title="tokens of held-out crops")]

    def report(self) -> Path:
        """Draws the curves and writes report.html beside the records."""
        from jtok.viz.pareto import save_figure
        from jtok.viz.rate_distortion import draw_curves, write_report

        points = means(self.records)
        figure: Figure = draw_curves(points)
        save_figure(self.workdir / "rate_distortion.png", figure)
        commit = git_commit()
        return write_report(
            self.workdir / "report.html",
            title=self.config.sweep.title,
            points=points,
            records=self.records,
            counts=self.counts,
            figure=figure,
            config=self.config.to_dict(),
            command=self.command,
            versions=versions(),
            commit=commit["commit"] if commit else "",
        )


def _tokenized(codec: Codec, picture: Picture, s: ConfigDict) -> Iterator[Record]:
    """A tokenizer's points of one photograph; it is analysed once."""
    found = codec.analyse(picture)
    ways = [("jtok, fixed", f"{n} tokens", np.full(found.tiling.count, n, np.int32)) for n in s.tokens]
    ways += [("jtok, adaptive", f"{q:g} dB", found.at_quality(q)) for q in s.qualities]
    for name, setting, counts in ways:
        container = codec.container(found.tiling, found.ids, counts)
        reconstruction = codec.decode(container)
        record = _point(name, setting, picture, len(pack(container)), reconstruction)
        seam = found.tiling.seam(reconstruction.astype(np.float64) - picture)
        yield {**record, "tokens": float(counts.mean()), "seam": seam}


def _others(picture: Picture, s: ConfigDict) -> Iterator[Record]:
    for name, kind, qualities in (("JPEG", "JPEG", s.jpeg), ("WebP", "WEBP", s.webp)):
        for quality in qualities:
            yield _point(name, f"quality {quality}", picture, *lossy(picture, kind, quality))


def _point(codec: str, setting: str, picture: Picture, size: int, reconstruction: Picture) -> Record:
    a, b = picture[None] / 255, reconstruction[None] / 255
    bits = 8 * size / (picture.shape[0] * picture.shape[1])
    return {
        "codec": codec,
        "setting": setting,
        "bytes": size,
        "bits_per_pixel": bits,
        "psnr": float(psnr(a, b)[0]),
        "ssim": float(ssim(a, b)[0]),
    }


def means(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """One record for each codec and setting: the mean over photographs of what was measured."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["codec"], record["setting"]), []).append(record)
    return [
        {"codec": codec, "setting": setting}
        | {name: float(np.mean([r[name] for r in members])) for name in MEANT if name in members[0]}
        for (codec, setting), members in groups.items()
    ]


def read_units(workdirs: Mapping[str, Path]) -> tuple[list[Record], list[Record]]:
    """(means, counts) of finished sweeps, by what each is called.

    With several, "jtok" in the names of codecs becomes the sweep's name, and the other codecs are those of the first.
    Raises UserError for a directory that holds no sweep.
    """
    points: list[Record] = []
    counts: list[Record] = []
    for name, workdir in workdirs.items():
        try:
            records, found = (json.loads((workdir / f"{part}.json").read_text()) for part in ("records", "counts"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{workdir}' holds no sweep of a tokenizer ({error}).") from None
        for point in means(records):
            ours = point["codec"].startswith("jtok")
            if ours or name == next(iter(workdirs)):
                codec = point["codec"].replace("jtok", name) if len(workdirs) > 1 else point["codec"]
                points.append({**point, "codec": codec})
        counts += [{"tokenizer": name, **row} for row in found]
    return points, counts


def bits_at(points: Sequence[Mapping[str, Any]], qualities: Sequence[float]) -> list[Record]:
    """Bits per pixel that each codec needs for a mean PSNR: log-linear between its two measured points around it.

    None where no measured point is as good, or none is as bad: nothing is extrapolated.
    """
    rows = []
    for codec in dict.fromkeys(p["codec"] for p in points):
        curve = sorted((p["psnr"], np.log(p["bits_per_pixel"])) for p in points if p["codec"] == codec)
        quality, bits = np.array(curve).T
        row: Record = {"codec": codec}
        for wanted in qualities:
            inside = len(curve) > 1 and quality[0] <= wanted <= quality[-1]
            row[f"{wanted:g} dB"] = float(np.exp(np.interp(wanted, quality, bits))) if inside else None
        rows.append(row)
    return rows


def count_facts(
    codec: Codec, split: str, crops: int, qualities: Sequence[float], shorter: int | None = None
) -> Iterator[Record]:
    """At each quality: counts of held-out crops of one tile, their Spearman correlation with the size as PNG, and the
    count of a flat grey tile. The correlation is nan where all counts are equal.

    shorter: shorter side of the photographs that are cropped (default: 4 tiles)."""
    data = make_dataset("photos", split, size=codec.tile, length=crops, shorter=shorter)
    pictures = [data[i]["image"] for i in range(crops)]
    sizes = [png_bytes(picture) for picture in pictures]
    grey = np.full((codec.tile, codec.tile, 3), 128, np.uint8)
    tiles = np.stack([*pictures, grey]).astype(np.float32) / 255
    errors = codec.errors(tiles, codec.ids(tiles), np.ones(tiles.shape[:3], np.float32))
    for quality in qualities:
        counts = fewest(errors, codec.lengths, quality)
        chosen, varied = counts[:-1], len(set(counts[:-1].tolist())) > 1
        yield {
            "quality": quality,
            "tokens": float(chosen.mean()),
            "least": int(chosen.min()),
            "most": int(chosen.max()),
            "reached": float((errors[:-1].min(1) <= 10 ** (-quality / 10)).mean()),
            "flat_grey": int(counts[-1]),
            "spearman_png": float(spearmanr(chosen, sizes).statistic) if varied else float("nan"),
        }
