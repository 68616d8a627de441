"""Several questions about the same images, answered from the cached tokens or after rereading the images.

    talk = Conversation(fast, "sign.png")
    talk.ask("What is written on the sign?")
    talk.ask("And in which colour?")                 # reads only the new question
    talk.ask("Is there a car?", reread=True)         # reads everything again, under the plan

A method that reads the question keeps what the first one asks about; a second one may need what was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jtok.errors import UserError
from jtok.models.decoder.append import free_slots
from jtok.models.decoder.generate import State
from jtok.models.decoder.sampling import Sampling
from jtok.models.vlm.model import TEXT_STEP, VLM
from jtok.models.vlm.processing.images import ImageLike
from jtok.models.vlm.processing.processor import FPS

#: Later questions are padded to a multiple of this many tokens, so that few programs are compiled.
QUESTION_STEP = 16


class Conversation:
    """A conversation about images or a video.

    image, video, fps: as in `VLM.stream`. max_new_tokens: tokens of all answers and later questions that the caches can
    take before everything has to be reread, fewer where the model runs out of positions. sampling, seed: of the
    answers.
    """

    def __init__(
        self,
        model: VLM,
        image: ImageLike | Sequence[ImageLike] | None = None,
        *,
        video: Sequence[ImageLike] | None = None,
        fps: float = FPS,
        max_new_tokens: int = 1024,
        sampling: Sampling | None = None,
        seed: int = 0,
    ):
        self.model, self.max_new_tokens, self.sampling, self.seed = model, max_new_tokens, sampling, seed
        self._media = image, video, fps
        self._visuals: tuple = ()  # images and videos, prepared with the first question
        self._state: State | None = None
        self.ids: list[int] = []  # all ids so far, one placeholder for each image and video

    def ask(self, question: str, *, reread: bool = False, tokens: int = 128) -> str:
        """The whole answer; see `stream`."""
        return "".join(self.stream(question, reread=reread, tokens=tokens)).strip()

    def stream(self, question: str, *, reread: bool = False, tokens: int = 128) -> Iterator[str]:
        """The answer to the next question, of at most `tokens` tokens, piece by piece.

        reread: the images and the whole conversation are read again, so that the plan may choose other visual tokens;
        else only the question is, on top of the caches. Raises UserError where these have too few free slots.
        """
        if tokens > self.max_new_tokens:
            raise UserError(
                f"{tokens} tokens are requested and the conversation has {self.max_new_tokens}: raise max_new_tokens."
            )
        if self._state is None:
            new_ids, *visuals = self.model.begin(question, *self._media)
            self._visuals = tuple(visuals)
        else:
            new_ids = self._following(question)
        state = self._read(new_ids, question, tokens) if reread or self._state is None else self._add(new_ids, tokens)
        self._state, self.ids = state, [*self.ids, *new_ids]
        text = self.model.described().tokenizer.stream()
        for ids, next_state in self.model.answer(state, tokens, sampling=self.sampling, stops=self._stops):
            self._state = next_state
            answer_ids = [int(i) for i in ids[0] if i >= 0]
            self.ids += answer_ids
            yield "".join(text.push(i) for i in answer_ids)
        yield text.finish()

    @property
    def _stops(self) -> tuple[int, ...]:
        return tuple(self.model.described().tokenizer.stops)

    def _following(self, question: str) -> list[int]:
        """The question's ids with the template's before them; an answer that has ended already holds its stop token."""
        ids = self.model.described().follow_up(question)
        return ids[1:] if self.ids[-1] in self._stops and ids[0] == self.ids[-1] else ids

    def _read(self, new_ids: list[int], question: str, tokens: int) -> State:
        processor = self.model.described()
        batch = processor.batch([processor.place([*self.ids, *new_ids], *self._visuals)])
        inputs = self.model.about(self.model.config.arrange(batch, TEXT_STEP), [question])
        positions = self.model.positions_left(inputs)
        limit = self.max_new_tokens if positions is None else min(self.max_new_tokens, max(positions, tokens))
        return self.model.start(inputs, max_new_tokens=limit, seed=self.seed)

    def _add(self, new_ids: list[int], tokens: int) -> State:
        length = -(-len(new_ids) // QUESTION_STEP) * QUESTION_STEP
        free = free_slots(self._state.caches)
        if length + tokens > free:
            raise UserError(
                f"question and answer take up to {length + tokens} tokens and the caches have {free} free slots: "
                "ask with reread=True, or start with a larger max_new_tokens."
            )
        ids = np.zeros((1, length), np.int32)
        ids[0, : len(new_ids)] = new_ids
        return self.model.add(self._state, ids, np.arange(length)[None] < len(new_ids))
