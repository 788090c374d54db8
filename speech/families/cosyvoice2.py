"""CosyVoice2's language model (arXiv 2412.10117) in the Hugging Face form of its own GRPO recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from speech.families.base import unusable
from speech.families.causal import CausalSpeechFamily
from speech.records import INSTRUCTION_END, PromptLayout, split_instruction

START, TASK = "<|sos|>", "<|task_id|>"
_CONTROL = re.compile(r"<\|.*\|>")


class CosyVoice2Family(CausalSpeechFamily):
    """`<|sos|>` words of the voice, text `<|task_id|>` tokens of the voice → speech `<|eos1|>`.

    An instruction (`speak softly<|endofprompt|>`) stands before both: what is continued is the voice.

    A Qwen2 whose vocabulary ends in `<|s_0|>` … `<|s_6560|>`, `<|eos1|>` … `<|eos3|>`, `<|sos|>` and `<|task_id|>`,
    as the recipe's `pretrained_to_huggingface.py` writes it.

    Three ids end speech in inference. Only the first was ever a training target for it (the third is filler of the
    streaming mode), so it alone is allowed here.

    The recipe gives the output layer a bias (−∞ for text) that neither Qwen2 in transformers nor in vLLM has; both drop
    it, and training goes on without it, as in the recipe. Text then has logit 0 rather than −∞: only the mask of
    allowed tokens keeps it from being sampled.

    Raises:
        UserError: a file or a token is missing.
    """

    name = "cosyvoice2"
    model_types = ("qwen2",)
    codec = "cosyvoice2"
    stop_token = "<|eos1|>"
    markers: ClassVar[tuple[str, ...]] = (START, TASK)

    def may_stand_in_text(self, token: str) -> bool:
        """Sounds may, which are written in other brackets: `[breath]`, `<laughter>`."""
        return _CONTROL.fullmatch(token) is None

    def complete_instruction(self, instruction: str) -> str:
        """What stands before the mark, without which an empty one has no mark either."""
        return instruction

    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        instruction, said = split_instruction(text)
        self.text_ids(said)
        if instruction and not self._has(INSTRUCTION_END):
            raise unusable(text, "text", [f"holds an instruction, but the tokenizer lacks {INSTRUCTION_END}"])
        instruction = self.complete_instruction(instruction)
        order = [*self.text_ids(instruction), self._id(INSTRUCTION_END)] if instruction else []
        if voice_tokens:
            # The voice is continued: without its words the text would begin with speech that it does not contain.
            self.text_ids(voice_text, "prompt_text")
        ids = [
            self._id(START),
            *order,
            # Without a space, as in the recipe.
            *self.text_ids((voice_text.strip() if voice_tokens else "") + said.strip()),
            self._id(TASK),
            *self.speech_token_ids(voice_tokens),
        ]
        return PromptLayout(tuple(ids), audio_start=0, audio_length=0)
