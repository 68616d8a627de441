"""Questions and images in, prompts out: what a checkpoint directory says about its inputs, in one object."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from jtok.errors import UserError
from jtok.models.vlm.families.llava import processing as llava
from jtok.models.vlm.families.llava_next import processing as llava_next
from jtok.models.vlm.families.mllama import processing as mllama
from jtok.models.vlm.families.onevision import processing as onevision
from jtok.models.vlm.families.qwen2_5_vl import processing as qwen2_vl
from jtok.models.vlm.processing import chat
from jtok.models.vlm.processing.batch import Batch, pad_batch
from jtok.models.vlm.processing.chat import Message
from jtok.models.vlm.processing.images import ImageLike, open_image
from jtok.models.vlm.processing.layout import VisualInput
from jtok.models.vlm.processing.prompt import Prompt, expand, mrope_positions, text_positions
from jtok.models.vlm.processing.settings import ImageSettings, image_settings, read_json
from jtok.models.vlm.processing.text import Tokenizer, load_tokenizer

#: How each family makes its pixels. PaliGemma's are LLaVA's with other settings: a square, and no crop.
PREPARE = {
    "llava": llava.prepare,
    "llava_next": llava_next.prepare,
    "llava_onevision": onevision.prepare,
    "qwen2_5_vl": qwen2_vl.prepare,
    "paligemma": llava.prepare,
    "mllama": mllama.prepare,
}
PREPARE_VIDEO = {"llava_onevision": onevision.prepare_video, "qwen2_5_vl": qwen2_vl.prepare_video}

#: Stands for an answer where a template is rendered for what comes behind it.
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
    def family(self) -> str:
        return self.settings.family

    def images(self, images: Sequence[ImageLike]) -> list[VisualInput]:
        """The images of one prompt, together: LLaVA-OneVision treats one image otherwise than several."""
        opened = [open_image(image) for image in images]
        return PREPARE[self.family](opened, self.settings) if opened else []

    def video(self, frames: Sequence[ImageLike], fps: float = FPS) -> VisualInput:
        """A video from frames of one size, `fps` of which are shown a second. Raises UserError."""
        if self.family not in PREPARE_VIDEO:
            raise UserError(f"{self.family} takes no videos; {' and '.join(PREPARE_VIDEO)} do.")
        opened = [open_image(frame) for frame in frames]
        if len({frame.size for frame in opened}) != 1 or not fps > 0:
            raise UserError("a video is at least one frame, all of one size, with a positive number of them a second.")
        return PREPARE_VIDEO[self.family](opened, self.settings, fps)

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
        """The ids that stand between an answer and the next one: its end, the next question, the start of an answer.

        They begin with the stop token where the template closes an answer with one. Raises UserError where the template
        takes no conversation of several turns.
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
        if self.family == "qwen2_5_vl":
            positions = mrope_positions(len(expanded), visuals, offsets, self.settings.ticks)
        else:
            positions = text_positions(len(expanded), first=int(self.family == "paligemma"))
        return Prompt(expanded, visuals, offsets, positions)

    def batch(self, prompts: Sequence[Prompt], *, length: int = 0, tokens: int = 0, crops: int = 0) -> Batch:
        """`pad_batch` with this model's padding id."""
        return pad_batch(prompts, self.tokenizer.pad, length=length, tokens=tokens, crops=crops)

    def _variables(self, tokens: dict[str, str]) -> dict[str, str]:
        # how the built-in ChatML template fences a placeholder: Qwen's own models mark both ends, the others a line
        fences = ("<|vision_start|>", "<|vision_end|>") if self.family == "qwen2_5_vl" else ("", "\n")
        stop = self.tokenizer.token(self.tokenizer.stops[0]) if self.tokenizer.stops else ""
        return {
            "bos_token": self.tokenizer.token(self.tokenizer.bos),
            "eos_token": stop,
            "image_token": tokens["image"],
            "video_token": tokens["video"],
            "before": fences[0],
            "after": fences[1],
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
        template = chat.BUILT_IN[chat.built_in(read_json(directory, "config.json"))]
    return Processor(settings, tokenizer, template)
