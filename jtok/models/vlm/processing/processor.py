"""Questions and images in, prompts out: what a checkpoint directory says about its inputs, in one object."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jtok.errors import UserError
from jtok.models.vlm.families.all import families, find
from jtok.models.vlm.processing import chat
from jtok.models.vlm.processing.batch import Batch, pad_batch
from jtok.models.vlm.processing.chat import Message
from jtok.models.vlm.processing.images import ImageLike, open_image
from jtok.models.vlm.processing.layout import VisualInput
from jtok.models.vlm.processing.prompt import Prompt, expand
from jtok.models.vlm.processing.read_settings import image_settings
from jtok.models.vlm.processing.settings import ImageSettings, read_json
from jtok.models.vlm.processing.text import Tokenizer, load_tokenizer

if TYPE_CHECKING:  # a record imports this package
    from jtok.models.vlm.family import Family

#: Placeholder for an answer where a template is rendered to get what follows it.
ANSWER = "<<the answer>>"

#: Frames a second where a caller does not say: what Qwen2.5-VL samples videos at.
FPS = 2.0


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes prompts for one model. `template` is jinja2 source; it is rendered in a sandbox."""

    settings: ImageSettings
    tokenizer: Tokenizer
    template: str

    @property
    def family(self) -> Family:
        """What is known of the model's family."""
        return find(self.settings.family)

    def images(self, images: Sequence[ImageLike]) -> list[VisualInput]:
        """The images of one prompt, together: LLaVA-OneVision treats one image otherwise than several."""
        opened = [open_image(image) for image in images]
        return self.family.prepare(opened, self.settings) if opened else []

    def video(self, frames: Sequence[ImageLike], fps: float = FPS) -> VisualInput:
        """A video from frames of one size at `fps` frames per second. Raises UserError."""
        if self.family.prepare_video is None:
            others = " and ".join(name for name, family in families().items() if family.prepare_video is not None)
            raise UserError(f"{self.family.name} takes no videos; {others} do.")
        opened = [open_image(frame) for frame in frames]
        if len({frame.size for frame in opened}) != 1 or not fps > 0:
            raise UserError("a video is at least one frame, all of one size, with a positive number of them a second.")
        return self.family.prepare_video(opened, self.settings, fps)

    def prompt(
        self,
        question: str | Sequence[Message],
        images: Sequence[ImageLike] = (),
        videos: Sequence[VisualInput] = (),
    ) -> Prompt:
        """A question, or a conversation ending with one, as ids with the visual tokens in place.

        question: text, or messages as in `chat.conversation`. videos: what `video` made. Raises UserError if the
        placeholders are not one for each image and video.
        """
        return self.place(self.encode(question, len(images), len(videos)), self.images(images), videos)

    def encode(self, question: str | Sequence[Message], images: int = 0, videos: int = 0) -> list[int]:
        """The ids of a prompt with one placeholder for each image and video: what `place` takes."""
        return self.tokenizer.encode(self._render(question, images, videos))

    def follow_up(self, question: str) -> list[int]:
        """The ids between an answer and the next one: its end, the next question, the start of an answer.

        They begin with the stop token where the template closes an answer with one. Raises UserError where the template
        does not support several turns.
        """
        turns = [("user", "?"), ("assistant", ANSWER), ("user", question)]
        text = self._render([{"role": role, "content": content} for role, content in turns], 0, 0)
        if text.count(ANSWER) != 1:
            raise UserError("the chat template leaves out earlier answers: ask each question by itself.")
        return self.tokenizer.inner.encode(text.split(ANSWER)[1], add_special_tokens=False).ids

    def _render(self, question: str | Sequence[Message], images: int, videos: int) -> str:
        inner = self.tokenizer
        tokens = {"image": inner.token(inner.image), "video": inner.token(inner.video)}
        messages = chat.conversation(question, images, videos, tokens)
        return chat.render(self.template, messages, self._variables(tokens))

    def place(
        self, ids: Sequence[int], images: Sequence[VisualInput] = (), videos: Sequence[VisualInput] = ()
    ) -> Prompt:
        """A prompt from ids with one placeholder for each image and video."""
        expanded, visuals, offsets = expand(ids, self.tokenizer, images, videos)
        positions = self.family.positions(len(expanded), visuals, offsets, self.settings)
        return Prompt(expanded, visuals, offsets, positions)

    def batch(self, prompts: Sequence[Prompt], *, length: int = 0, tokens: int = 0, crops: int = 0) -> Batch:
        """`pad_batch` with this model's padding id."""
        return pad_batch(prompts, self.tokenizer.pad, length=length, tokens=tokens, crops=crops)

    def _variables(self, tokens: dict[str, str]) -> dict[str, str]:
        stop = self.tokenizer.token(self.tokenizer.stops[0]) if self.tokenizer.stops else ""
        return {
            "bos_token": self.tokenizer.token(self.tokenizer.bos),
            "eos_token": stop,
            "image_token": tokens["image"],
            "video_token": tokens["video"],
            "before": self.family.fences[0],
            "after": self.family.fences[1],
        }


def load_processor(directory: str | pathlib.Path) -> Processor:
    """What a Hugging Face checkpoint directory says about its inputs; no weights are read.

    Raises UserError for a directory that is not one, for other models, and for files that are missing or disagree.
    """
    if not pathlib.Path(directory).is_dir():
        raise UserError(f"'{directory}' is not a directory: give the directory of a Hugging Face checkpoint.")
    settings = image_settings(directory)
    tokenizer = load_tokenizer(directory)
    if tokenizer.image is None:
        raise UserError(f"config.json in '{directory}' names no image token (image_token_id), so images have no place.")
    template = chat.load_template(directory)
    if template is None:
        template = find(settings.family).template(read_json(directory, "config.json"))
    return Processor(settings, tokenizer, template)
