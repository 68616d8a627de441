"""Visual tokens gathered as `layout` says equal what the reference packs from the same features."""

import types

import numpy as np
import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from jtok.models.vlm.families.llava_next.processing import best_pinpoint, mosaic_spans
from jtok.models.vlm.processing.layout import Span, VisualInput, bilinear, layout
from jtok.models.vlm.processing.settings import ImageSettings
from tests.models.processing.checkpoints import PINPOINTS

NEWLINE = np.array([7.0, -3.0, 11.0])
CASES = [(100, 90), (56, 56), (40, 300), (300, 41), (33, 35), (200, 399), (7, 500), (97, 3)]
POINTS = {"small": PINPOINTS, "large": [[56 * i, 56 * j] for i in range(1, 7) for j in range(1, 7)]}


def settings(pinpoints, max_crops=0):
    points = tuple(map(tuple, pinpoints))
    common = dict(mean=(0,) * 3, std=(1,) * 3, scale=1, resample=3, patch=14)
    return ImageSettings("llava_next", **common, side=56, pinpoints=points, max_crops=max_crops)


def gathered(spans, features):
    """The tokens that a model would gather from features [crops, patches, D]."""
    result = layout(spans)
    flat = features.reshape(-1, features.shape[-1])
    tokens = (result.weight[..., None] * flat[result.source]).sum(1)
    return np.where(result.newline[:, None], NEWLINE, tokens)


def reference(model, features, size, pinpoints, **options):
    vision = types.SimpleNamespace(image_size=56, patch_size=14)
    self = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    newline = torch.tensor(NEWLINE)
    packed, _ = model.pack_image_features(
        self, [torch.tensor(features)], torch.tensor([size]), image_newline=newline, **options
    )
    return packed[0].numpy()


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("size", CASES)
def test_llava_next_mosaics(size, points):
    chosen = settings(POINTS[points])
    spans = mosaic_spans(size, best_pinpoint(size, chosen.pinpoints), chosen)
    crops = 1 + spans[1].tiles[0] * spans[1].tiles[1]
    features = np.random.default_rng(0).normal(size=(crops, 16, 3))
    theirs = reference(LlavaNextModel, features, size, POINTS[points], vision_feature_select_strategy="default")
    ours = gathered(spans, features)
    assert len(ours) == sum(span.tokens for span in spans)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("most", [1, 4, 9])
@pytest.mark.parametrize("size", CASES)
def test_onevision_mosaics_are_resampled(size, most):
    chosen = settings(POINTS["large"], most)
    spans = mosaic_spans(size, best_pinpoint(size, chosen.pinpoints), chosen)
    crops = 1 + spans[1].tiles[0] * spans[1].tiles[1]
    features = np.random.default_rng(0).normal(size=(crops, 16, 3))
    name = f"anyres_max_{most}"
    theirs = reference(LlavaOnevisionModel, features, size, POINTS["large"], vision_aspect_ratio=name)
    np.testing.assert_allclose(gathered(spans, features), theirs, rtol=0, atol=1e-6)


def test_some_mosaic_is_resampled():
    """So that the test above means something."""
    chosen = settings(POINTS["large"], 4)
    spans = [mosaic_spans(size, best_pinpoint(size, chosen.pinpoints), chosen)[1] for size in CASES]
    assert {span.resampled for span in spans} == {True, False}


@pytest.mark.parametrize("side", [4, 5])
def test_onevision_video(side):
    frames = 3
    half = -(-side // 2)
    span = Span("video", (half, half), (side, side), frames=frames, newline="end")
    features = np.random.default_rng(0).normal(size=(frames, side * side, 3))
    vision = types.SimpleNamespace(image_size=14 * side, patch_size=14)
    self = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision))
    theirs = LlavaOnevisionModel.apply_pooling(self, torch.tensor(features)).numpy().reshape(-1, 3)
    ours = gathered((span,), features)
    np.testing.assert_allclose(ours[:-1], theirs, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[-1], NEWLINE)


def test_what_a_reducer_sees_of_a_mosaic():
    """A 2 x 2 mosaic of 4 x 4 patches with one row cut away at the top and at the bottom."""
    spans = Span("image", (4, 4), (4, 4)), Span("image", (6, 8), (4, 4), 1, (2, 2), window=(1, 0, 6, 8), newline="row")
    result = layout(spans)
    assert len(result) == 16 + 6 * 9
    body = {name: getattr(result, name)[16:].reshape(6, 9, -1) for name in ("source", "crop", "position", "newline")}
    assert (result.span == np.repeat([0, 1], [16, 54])).all() and (result.crop[:16] == 0).all()
    assert body["newline"][:, 8].all() and not body["newline"][:, :8].any()
    assert (body["crop"][:3, :4] == 1).all() and (body["crop"][:3, 4:] == 2).all()
    assert (body["crop"][3:, :4] == 3).all() and (body["crop"][3:, 4:] == 4).all()
    assert (body["position"][2, 5] == [0, 2, 5]).all() and (body["position"][2, 8] == [0, 2, 8]).all()
    assert body["source"][0, 0, 0] == 16 + 4 and body["source"][0, 8, 0] == -1
    assert set(result.source.ravel()) - {-1} == set(range(80)) - {
        *range(16, 20),
        *range(32, 36),
        *range(60, 64),
        *range(76, 80),
    }


def test_class_tokens_frames_and_ends():
    tiles = tuple(Span("image", (2, 2), (2, 2), crop=tile, special=1) for tile in range(2))
    result = layout(tiles)
    assert result.source[:, 0].tolist() == list(range(10)) and result.crop.tolist() == [0] * 5 + [1] * 5
    assert (result.position[[0, 5]] == -1).all() and not result.newline.any()
    video = layout((Span("video", (1, 2), (1, 2), frames=3, newline="end"),))
    assert video.position.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [2, 0, 0], [2, 0, 1], [2, 0, 2]]
    assert video.crop.tolist() == [0, 0, 1, 1, 2, 2, 2] and video.newline.tolist() == [False] * 6 + [True]


def test_a_strip_thinner_than_a_patch_leaves_the_base_crop_alone():
    chosen = settings([(56, 112)])
    spans = mosaic_spans((2, 400), (56, 112), chosen)
    assert [span.tokens for span in spans] == [16, 0] and len(layout(spans)) == 16


def test_weights_of_a_resampled_axis():
    low, high, share = bilinear(4, 2)
    assert low.tolist() == [0, 2] and high.tolist() == [1, 3] and share.tolist() == [0.5, 0.5]
    result = layout((Span("image", (2, 3), (5, 4)),))
    np.testing.assert_allclose(result.weight.sum(1), 1, atol=1e-6)


def test_features_count_padding_crops():
    span = Span("image", (2, 2), (2, 2), special=1)
    assert VisualInput("image", np.zeros((4, 3, 28, 28), np.float32), (9, 9), (span,), slots=1, real=1).features == 20
    video = Span("video", (2, 2), (2, 2), frames=3)
    assert VisualInput("video", np.zeros((48, 8), np.float32), (9, 9), (video,), 12, grid=(3, 4, 4)).features == 12


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("size", CASES)
def test_the_way_back_from_features_to_tokens(size, most):
    chosen = settings(POINTS["large"], most)
    spans = mosaic_spans(size, best_pinpoint(size, chosen.pinpoints), chosen)
    result = layout(spans)
    single = ~result.newline & ~result.resampled
    np.testing.assert_array_equal(result.home[result.source[single, 0]], np.flatnonzero(single))
    top, left, height, width = spans[1].kept
    assert (result.home >= 0).sum() == 16 + height * width and not result.newline[result.home[result.home >= 0]].any()
    if result.resampled.any():  # a token's largest share is of a feature whose home it is, or of its neighbour
        token = np.flatnonzero(result.resampled & ~result.newline)
        largest = result.source[token, result.weight[token].argmax(1)]
        apart = result.position[result.home[largest]] - result.position[token]
        assert np.abs(apart).max() <= 1 and (apart == 0).all(1).mean() > 0.5


def test_frames_are_pooled_towards_the_nearest_token():
    result = layout((Span("video", (3, 3), (5, 5), frames=2, newline="end"),))
    first = np.asarray([0, 0, 1, 2, 2])
    frame = 3 * first[:, None] + first[None]
    np.testing.assert_array_equal(result.home.reshape(2, 5, 5), [frame, 9 + frame])
