"""What every image tokenizer offers: all that files, codecs, evaluation, benchmarks and export require.

Nothing outside a tokenizer's own file asks which class it is. `jtok.tokenizers.code.Tokenizer` implements most of this
from `analyse`, `synthesise`, `lengths`, `config` and `quantizer`; a tokenizer overrides what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule
from jtok.checkpoints.safetensor_files import Weights
from jtok.tokenizers.base_grid import BaseTokenizer, Needs
from jtok.tokenizers.code import Code


@runtime_checkable
class ImageTokenizer(Protocol):
    """An `nnx.Module` made by `cls(config, rngs)`; images are float [B,H,W,3] in [0,1].

    config: a dataclass of plain values, which its files state. lengths: numbers of tokens that a search for a quality
    tries, ascending; the last is all of them.
    """

    config: Any
    lengths: tuple[int, ...]
    #: Whether a shorter code is a prefix of the longer one; if not, it must be re-encoded (`encode(images, n)`).
    prefix: ClassVar[bool]
    #: Attribute that holds the frozen base tokenizer or VAE; None for a tokenizer of pixels.
    base_slot: ClassVar[str | None]
    #: Name prefixes of the other tensors in the authors' checkpoints.
    beside: ClassVar[tuple[str, ...]]

    # codes
    def encode(
        self,
        images: Float[Array, "B H W 3"],
        tokens: int | None = None,
        *,
        quality: float | None = None,
        key: Array | None = None,
    ) -> Code:
        """A code of all tokens, of `tokens`, or of the fewest with a PSNR of `quality` dB. Raises UserError for
        images of another size or dtype, for a number of tokens that it does not have, and for both at once."""
        ...

    def decode(self, code: Code, tokens: int | None = None, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images in [0,1] from a code, or from its first `tokens` latents."""
        ...

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """The whole code; in training with the losses of the bottleneck."""
        ...

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """`decode` before it clips to [0,1]: what training compares with the images."""
        ...

    def from_ids(self, ids: Int[Array, "B K"], count: Int[Array, " B"]) -> Code:
        """The code of ids; those after `count` are ignored. Raises UserError for continuous latents."""
        ...

    def check_count(self, tokens: int) -> None:
        """Raises UserError for a number of tokens that it does not have."""
        ...

    # sizes
    @property
    def codes(self) -> int:
        """Number of ids that a token can take; 0 for continuous latents."""
        ...

    @property
    def image_side(self) -> int:
        """Side in pixels of the images that it is made for."""
        ...

    @property
    def codec_ready(self) -> bool:
        """Whether `jtok.tokenizers.codec` codes images of any size with it, tile by tile."""
        ...

    def bits(self, count: float, length: int, each: float | None = None) -> float:
        """Bits of an image of which `count` of `length` tokens are kept, of `each` bits (default: log2 of `codes`)."""
        ...

    # base tokenizer
    @property
    def base_needs(self) -> Needs | None:
        """What it requires of the base in `base_slot`."""
        ...

    def put_base(self, base: BaseTokenizer) -> None:
        """Sets the frozen base tokenizer or VAE. Raises UserError for a tokenizer without one."""
        ...

    # files of the authors; those of jtok's own need `config` alone (`save_tokenizer`, `load_tokenizer`)
    def names(self) -> Iterator[Rule]:
        """The authors' names of all parameters."""
        ...

    @classmethod
    def released_config(cls, weights: Weights) -> Any | None:
        """The config of a checkpoint of the authors; None for a checkpoint of anything else."""
        ...

    def release(self) -> dict[str, Any]:
        """The authors' config.json. Raises UserError for a tokenizer without a released format."""
        ...
