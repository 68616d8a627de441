"""The table knows every parameter of every family, and the rules split what they should."""

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from jtok.errors import UserError
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import DecoderConfig
from jtok.models.towers.clip_text import ClipTextConfig, ClipTextTower
from jtok.models.towers.qwen_vision import QwenVisionConfig
from jtok.models.towers.tiled_config import TiledConfig
from jtok.models.towers.vit import ViT, ViTConfig
from jtok.models.vlm.families.mllama.network import MllamaConfig
from jtok.models.vlm.network import VLMConfig
from jtok.sharding import AXES, RULES, TABLE, check_batch, logical_axes, make_mesh, shardings, spec
from jtok.tokenizers.alit import ALIT, ALITConfig
from jtok.tokenizers.flextok import FlexTok, FlexTokConfig
from jtok.tokenizers.generator import Generator, GeneratorConfig
from jtok.tokenizers.karl import KARL, KARLConfig
from jtok.tokenizers.titok import TiTok, TiTokConfig
from jtok.training import optimizer
from jtok.training.losses.tokenizer import PatchDiscriminator
from jtok.training.state import create, named_leaves
from jtok.training.tasks.classify import default_config

TILED = TiledConfig(width=64, heads=4, local=4, deep=2, mlp=96, taps=(1, 2))
LLAMA = DecoderConfig(depth=2, qkv_bias=True, out_bias=True, mlp_bias=True)
LLAVA = VLMConfig(
    "llava", ViTConfig(width=1024, heads=16, mlp=4096), ProjectorConfig(1024, 4096), LLAMA, 5, newline=True
)
QWEN = VLMConfig("qwen2_5_vl", QwenVisionConfig(), ProjectorConfig(5120, 4096), LLAMA, 5)
MLLAMA = MllamaConfig(TILED, ProjectorConfig(TILED.outputs, 4096, depth=1), DecoderConfig(depth=4, cross=(2,)), 5)

FAMILIES = {
    "vit": lambda rngs: ViT(ViTConfig(classes=10, head="distill", distill_token=True, pre_norm=True), rngs),
    "siglip": lambda rngs: ViT(ViTConfig(head="map", class_token=False), rngs),
    "dinov2": lambda rngs: ViT(ViTConfig(mlp_kind="swiglu", registers=4, layer_scale=True), rngs),
    "clip_text": lambda rngs: ClipTextTower(ClipTextConfig(99, 64, 128, 2, 4, 77, 1e-5, "quick_gelu", 2, 32), rngs),
    "llava": LLAVA.network,
    "qwen2_5_vl": QWEN.network,
    "mllama": MLLAMA.network,
    "titok": lambda rngs: TiTok(TiTokConfig(), rngs),
    "flextok": lambda rngs: FlexTok(FlexTokConfig(), rngs),
    "alit": lambda rngs: ALIT(ALITConfig(), rngs),
    "karl": lambda rngs: KARL(KARLConfig(), rngs),
    "maskgit": lambda rngs: Generator(GeneratorConfig(depth=2), rngs),
    "uvit": lambda rngs: Generator(GeneratorConfig(body="uvit", depth=4), rngs),
    "discriminator": lambda rngs: PatchDiscriminator(rngs),
}


def parameters(family):
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: FAMILIES[family](nnx.Rngs(0))), nnx.Param))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_has_named_axes(family):
    leaves = named_leaves(parameters(family))
    for name, leaf in leaves.items():
        rank = len(leaf.shape) - (".blocks." in f".{name}")
        if rank > 1 or name.endswith("kernel"):
            assert logical_axes(name, len(leaf.shape)), name
    # nearly all that there is can be shared by `fsdp`
    mesh = AbstractMesh((1, 2, 1), AXES)
    sizes = {name: (leaf.size, leaf.size // 2) for name, leaf in leaves.items()}
    held = sum(
        sizes[name]["fsdp" in str(where.spec)]
        for name, where in named_leaves(shardings(parameters(family), mesh)).items()
    )
    assert held < 0.53 * sum(size for size, _ in sizes.values())


def test_the_rules_name_axes_that_there_are():
    named = {axis for _, *variants in TABLE for variant in variants for axis in variant.split()}
    assert set(RULES) - {"batch"} <= named and {axis for over in RULES.values() for axis in over} == set(AXES)


def test_what_does_not_divide_stays_whole_and_an_axis_is_used_once():
    mesh = AbstractMesh((1, 4, 2), AXES)
    assert spec(("layers", "embed", "part", "heads", "head"), (3, 8, 3, 6, 5), mesh) == PartitionSpec(
        None, "fsdp", None, "tensor", None
    )
    assert spec(("embed", "mlp"), (6, 8), mesh) == PartitionSpec(None, "tensor")
    assert spec(("embed", "embed"), (8, 8), mesh) == PartitionSpec("fsdp", None)
    assert spec(None, (8, 8), mesh) == PartitionSpec()
    assert spec(("batch",), (8,), AbstractMesh((2, 2, 2), AXES)) == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_and_averages_lie_where_their_parameters_do(kind):
    config, params = default_config(), {"model": parameters("vit")}
    config.train.optimizer = kind
    names = tuple(named_leaves(params))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda p, k: create(p, names, optimizer.build(config.train), ema=True, key=k), params, key)
    places = named_leaves(shardings(state, AbstractMesh((1, 2, 2), AXES)))
    moments = [name for name in places if name.startswith("opt_state.") and name.endswith("qkv.kernel")]
    assert moments
    for name in [*moments, "ema.model.blocks.attention.qkv.kernel"]:
        assert places[name] == places["params.model.blocks.attention.qkv.kernel"], name
    assert places["params.model.blocks.attention.qkv.kernel"].spec == PartitionSpec(None, "fsdp", None, "tensor", None)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"fsdp": 0}, r"mesh axis fsdp \(config.mesh.fsdp\) is 0; it must be at least 1"),
        ({"tensor": -2}, r"mesh axis tensor \(config.mesh.tensor\) is -2"),
        ({"fsdp": 3}, "fsdp 3 times tensor 1 .* does not divide the 1 devices"),
    ],
)
def test_meshes_that_there_cannot_be(sizes, said):
    with pytest.raises(UserError, match=said):
        make_mesh(devices=jax.devices()[:1], **sizes)


def test_batches_that_the_mesh_cannot_share():
    mesh = AbstractMesh((2, 2, 2), AXES)
    check_batch(8, 2, mesh)
    with pytest.raises(UserError, match=r"a batch of 6 .* multiple of the 4 parts in which the mesh shares it"):
        check_batch(6, 1, mesh)
    with pytest.raises(UserError, match="4 parts times 2 micro-batches"):
        check_batch(12, 2, mesh)
