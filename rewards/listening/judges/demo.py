"""A judge that this project trained: a checkpoint of one of its ASR families, decoded greedily by transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, Transcript, Wave, resample
from rewards.registries import JUDGES
from speech.errors import UserError
from speech.families import ModelFamily, load_family
from speech.records import Utterance

_TOKENS_PER_SECOND = 12  # nobody speaks faster; what a judge writes beyond it is a loop
_LEAST_TOKENS = 16


@JUDGES.register("demo")
class DemoJudge(Judge):
    """Encoder, adaptor and language model of a family in `speech.families`, without Ray and without vLLM.

    The embedded demo reads English; other checkpoints name their languages in the configuration.
    """

    states_likelihood = True
    languages = frozenset({"en"})

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        super().__init__(config, threads)
        family = load_family(config.path)
        if not isinstance(family, ModelFamily):
            raise UserError(f"judge 'demo': {config.path} is of family {family.name!r}, which does not hear")
        self._family = family
        self._device = torch.device(config.device)
        self._encoder = self._family.load_encoder().to(self._device)
        self._adaptor = self._family.load_adaptor().to(self._device)
        self._model = self._family.load_language_model().to(self._device)

    @torch.inference_mode()
    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        prompts = self._prompts(waves, sample_rate, language)
        texts = self._greedy(prompts, max(len(wave) for wave in waves) / sample_rate)
        if references is None:
            return [Transcript(text) for text in texts]
        nlls = self._likelihoods(prompts, references, language)
        return [Transcript(text, nll) for text, nll in zip(texts, nlls, strict=True)]

    def _prompts(self, waves: Sequence[Wave], rate: int, language: str) -> list[torch.Tensor]:
        """Input embeddings of each prompt, (positions, hidden)."""
        features = [self._encoder.features(resample(wave, rate, self._family.sample_rate)) for wave in waves]
        states = self._encoder([f.to(self._device) for f in features])
        prompts = []
        for state in states:
            audio = self._adaptor(state)
            layout = self._family.layout(_utterance("", language), len(audio))
            embeddings = self._embed(layout.token_ids)
            embeddings[layout.audio_start : layout.audio_start + layout.audio_length] = audio
            prompts.append(embeddings)
        return prompts

    def _greedy(self, prompts: list[torch.Tensor], seconds: float) -> list[str]:
        padded = pad_sequence(prompts, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(p) for p in prompts], device=self._device)
        places = torch.arange(padded.shape[1], device=self._device)
        mask = (places >= padded.shape[1] - lengths[:, None]).long()
        stops = list(self._family.stop_token_ids)
        settings = GenerationConfig(
            max_new_tokens=max(_LEAST_TOKENS, round(seconds * _TOKENS_PER_SECOND)),
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
        ids = self._model.generate(inputs_embeds=padded, attention_mask=mask, generation_config=settings).tolist()
        return [self._family.parse_output(_until(row, stops))[0] for row in ids]

    def _likelihoods(self, prompts: list[torch.Tensor], references: Sequence[str], language: str) -> list[float]:
        """−log p(reference tokens, stop token included) / number of them, by teacher forcing."""
        targets = [self._family.target_ids(_utterance(text, language)) for text in references]
        rows = [torch.cat([prompt, self._embed(target[:-1])]) for prompt, target in zip(prompts, targets, strict=True)]
        padded = pad_sequence(rows, batch_first=True)  # on the right: causal attention never sees it
        logits = self._model(inputs_embeds=padded).logits
        nlls = []
        for row, prompt, target in zip(logits, prompts, targets, strict=True):
            first = len(prompt) - 1
            log_probs = row[first : first + len(target)].float().log_softmax(-1)
            nlls.append(-log_probs.gather(1, torch.tensor(target, device=self._device)[:, None]).mean().item())
        return nlls

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor(list(ids), dtype=torch.long, device=self._device)
        return self._model.get_input_embeddings()(tokens).clone()


def _utterance(text: str, language: str) -> Utterance:
    return Utterance(id="", audio="", text=text, language=language)


def _until(ids: list[int], stops: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]
