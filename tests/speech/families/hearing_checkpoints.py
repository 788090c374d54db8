"""Tiny checkpoints with random weights of the families that hear, and what transformers' classes say of a recording."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FunAsrNanoConfig,
    FunAsrNanoForConditionalGeneration,
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from speech.families.hearing.fun_asr_nano import FunAsrNanoFamily
from speech.families.hearing.glmasr import GlmAsrFamily
from speech.families.hearing.granite_speech import GraniteSpeechFamily
from speech.families.hearing.native import NativeFamily
from speech.families.hearing.qwen2_5_omni import Qwen2_5OmniFamily
from speech.families.hearing.qwen2_audio import Qwen2AudioFamily
from speech.families.hearing.voxtral import VoxtralFamily
from speech.records import Utterance

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
MELS = 16


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, so that frames differ from one another."""
    count = round(16_000 * seconds)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.1 * noise * (1 + np.sin(np.arange(count) / 1500))).astype(np.float32)


def byte_tokenizer(special: Sequence[str], **tokens: str) -> PreTrainedTokenizerFast:
    """A token for each byte and for each special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def randomise(model: PreTrainedModel, gain: float = 1.5) -> PreTrainedModel:
    """Matrices that keep the size of what they map; biases and norms that are not 0 and 1.

    Logits are then far from uniform, and every tensor and every frame of the recording changes them.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.3 * noise if "embed" in name else gain * noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.05 * noise if name.endswith("bias") else 1 + 0.2 * noise)
    return model.eval()


def to_hub_names(folder: Path) -> None:
    """transformers 5.19 writes the language model under a prefix that no checkpoint of the hub has."""
    file = folder / "model.safetensors"
    old, new = "language_model.model.model.", "language_model.model."
    tensors = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def write_qwen2_audio(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    Qwen2AudioProcessor(WhisperFeatureExtractor(MELS), tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "d_model": 32,
        },
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = randomise(Qwen2AudioForConditionalGeneration(config))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(special[:3:2]))
    model.to(dtype).save_pretrained(folder)
    to_hub_names(folder)
    return folder


def qwen2_audio_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, torch.Tensor]:
    assert isinstance(family, Qwen2AudioFamily)
    return dict(family.processor(text=family.prompt_text(said), audio=[sound], return_tensors="pt"))


WHISPER = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 128,
           "num_mel_bins": MELS}  # fmt: skip


def write_voxtral(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The tokenizer has the bytes as words and 40 special tokens, at the ids that Voxtral's has them at."""
    known = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]",
             6: "[/AVAILABLE_TOOLS]", 7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]",
             11: "<pad>", 12: "[IMG_BREAK]", 13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]",
             17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]",
             34: "[TRANSCRIBE]"}  # fmt: skip
    tekken = {
        "config": {
            "pattern": r"[\s\S]",
            "num_vocab_tokens": 256,
            "default_vocab_size": 296,
            "default_num_special_tokens": 40,
            "version": "v7",
        },
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None}
                  for i in range(256)],
        "special_tokens": [{"rank": i, "token_str": known.get(i, f"<SPECIAL_{i}>"), "is_control": True}
                           for i in range(40)],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": MELS, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "tekken.json").write_text(json.dumps(tekken))
    WhisperFeatureExtractor(MELS).save_pretrained(folder)
    config = VoxtralConfig(
        audio_config=dict(WHISPER), text_config={**TEXT, "head_dim": 32, "vocab_size": 296}, audio_token_id=24
    )
    model = randomise(VoxtralForConditionalGeneration(config))
    model.generation_config = GenerationConfig(eos_token_id=2)
    model.to(dtype).save_pretrained(folder)
    to_hub_names(folder)
    return folder


def voxtral_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, Any]:
    """Tokens from mistral-common's own request for a transcription; features from transformers' processor."""
    from mistral_common.protocol.transcription.request import TranscriptionRequest

    assert isinstance(family, VoxtralFamily)
    file = io.BytesIO()
    soundfile.write(file, sound, 16_000, format="wav", subtype="FLOAT")
    file.seek(0)
    language = said.language if family.force_language is True else None
    request = TranscriptionRequest.from_openai({"model": "voxtral", "file": file, "language": language})
    encoded = family.tokenizer.tokenizer.encode_transcription(request)
    processor = VoxtralProcessor(WhisperFeatureExtractor.from_pretrained(family.path), family.tokenizer)
    features = processor._retrieve_input_features(
        [sound],
        3000,
        sampling_rate=16_000,
        padding=True,
        truncation=False,
        pad_to_multiple_of=480_000,
        return_tensors="pt",
    )
    return {"input_ids": torch.tensor([encoded.tokens]), "input_features": features}


GLM_TEMPLATE = (
    "{%- for m in messages -%}{{- '<|' + m.role + '|>\n' -}}"
    "{%- for c in m.content -%}{%- if c.type == 'audio' -%}{{- '<|begin_of_audio|><|pad|><|end_of_audio|>' -}}"
    "{%- else -%}{{- '<|user|>\n' + c.text -}}{%- endif -%}{%- endfor -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)


def write_glmasr(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_audio|>",
               "<|end_of_audio|>", "<|pad|>"]  # fmt: skip
    tokenizer = byte_tokenizer(special, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    extractor = WhisperFeatureExtractor(MELS, return_attention_mask=True)
    GlmAsrProcessor(extractor, tokenizer, chat_template=GLM_TEMPLATE).save_pretrained(folder)
    stops = tokenizer.convert_tokens_to_ids([special[0], special[1], special[3]])
    config = GlmAsrConfig(
        audio_config=dict(WHISPER),
        text_config={**TEXT, "head_dim": 32, "vocab_size": len(tokenizer), "eos_token_id": stops},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
    )
    model = randomise(GlmAsrForConditionalGeneration(config))
    model.to(dtype).save_pretrained(folder)
    to_hub_names(folder)
    return folder


def glmasr_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, Any]:
    assert isinstance(family, GlmAsrFamily)
    return dict(family.processor.apply_transcription_request(sound))


OMNI_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if loop.first and m.role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}"
    "{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- for c in m.content -%}{%- if c.type == 'audio' -%}{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}"
    "{%- else -%}{{- c.text -}}{%- endif -%}{%- endfor -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def write_qwen2_5_omni(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
               "<|IMAGE|>", "<|VIDEO|>"]  # fmt: skip
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = OMNI_TEMPLATE
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(MELS, chunk_length=300, return_attention_mask=True).save_pretrained(folder)
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "d_model": 32,
            "output_dim": 64,
            "n_window": 100,
        },
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"mrope_section": [4, 6, 6], "rope_type": "default", "rope_theta": 1e6},
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMAGE|>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<|VIDEO|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|IMAGE|>"),
        audio_start_token_id=tokenizer.convert_tokens_to_ids("<|audio_bos|>"),
        audio_end_token_id=tokenizer.convert_tokens_to_ids("<|audio_eos|>"),
    )
    model = randomise(Qwen2_5OmniThinkerForConditionalGeneration(config))
    model.to(dtype).save_pretrained(folder)
    return folder


def qwen2_5_omni_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, Any]:
    """What `Qwen2_5OmniProcessor` does for audio; the class itself needs torchvision, for images."""
    extractor = WhisperFeatureExtractor.from_pretrained(family.path)
    mel = extractor(sound, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt")
    frames = int(mel["attention_mask"].sum())
    token = family.tokenizer.convert_ids_to_tokens(family.audio_token)
    text = family.prompt_text(said).replace(token, token * ((((frames - 1) // 2 + 1) - 2) // 2 + 1))
    ids = family.tokenizer(text, return_tensors="pt")
    return {
        "input_ids": ids["input_ids"],
        "attention_mask": ids["attention_mask"],
        "input_features": mel["input_features"],
        "feature_attention_mask": mel["attention_mask"],
    }


GRANITE_TEMPLATE = (
    "{%- for m in messages -%}"
    "{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
LOGITS_SCALING = 3.0


def write_granite_speech(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>"]
    tokenizer = byte_tokenizer(special, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
    tokenizer.chat_template = GRANITE_TEMPLATE
    tokenizer.save_pretrained(folder)
    # As the released checkpoints have it; the class that reads it needs torchaudio.
    settings = {
        "feature_extractor_type": "GraniteSpeechFeatureExtractor",
        "melspec_kwargs": {"hop_length": 160, "n_fft": 512, "n_mels": MELS, "sample_rate": 16000, "win_length": 400},
        "projector_downsample_rate": 5,
        "projector_window_size": 15,
        "sampling_rate": 16000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = GraniteSpeechConfig(
        encoder_config={
            "input_dim": 2 * MELS,
            "num_layers": 2,
            "hidden_dim": 32,
            "num_heads": 2,
            "output_dim": 8,
            "context_size": 20,
            "max_pos_emb": 40,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "cross_attention_frequency": 1,
        },
        text_config={
            **TEXT,
            "model_type": "granite",
            "vocab_size": len(tokenizer),
            "embedding_multiplier": 5.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": LOGITS_SCALING,
            "bos_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
    )
    model = randomise(GraniteSpeechForConditionalGeneration(config))
    model.to(dtype).save_pretrained(folder)
    to_hub_names(folder)
    return folder


def granite_speech_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, Any]:
    """What `GraniteSpeechProcessor` does. Without torchaudio its features are ours."""
    features = family.load_encoder().features(sound)[None]
    count = -(-features.shape[1] // 15) * 3
    text = family.prompt_text(said).replace("<|audio|>", "<|audio|>" * count)
    ids = family.tokenizer(text, return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "input_features": features, "input_features_mask": torch.ones(1, count, dtype=torch.bool)}


FUN_TEMPLATE = (
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- for c in m.content if c.type == 'keywords' -%}"
    "{{- '热词列表：[' + c.keywords | join(', ') + ']\n' -}}{%- endfor -%}{{- '语音转写' -}}"
    "{%- for c in m.content if c.type == 'language' -%}{{- '成' + c.language -}}{%- endfor -%}{{- '：' -}}"
    "{%- for c in m.content if c.type == 'audio' -%}{{- '<|object_ref_start|>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def write_fun_asr_nano(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = FUN_TEMPLATE
    tokenizer.save_pretrained(folder)
    # As transformers writes it; the class that reads it needs torchaudio.
    settings = {"feature_extractor_type": "FunAsrNanoFeatureExtractor", "feature_size": MELS, "frame_length": 25,
                "frame_shift": 10, "num_frames_lfr": 7, "stride_lfr": 6, "window": "hamming"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = FunAsrNanoConfig(
        audio_config={
            "num_mel_bins": MELS,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_timestamp_prediction_layers": 1,
        },
        adaptor_config={"hidden_size": 64, "intermediate_size": 16, "num_attention_heads": 2,
                        "projector_hidden_size": 48},
        text_config={**TEXT, "model_type": "qwen3", "head_dim": 32, "vocab_size": len(tokenizer)},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
    )  # fmt: skip
    model = randomise(FunAsrNanoForConditionalGeneration(config))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(special[:3:2]))
    model.to(dtype).save_pretrained(folder)
    return folder


def fun_asr_nano_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, Any]:
    """What `FunAsrNanoProcessor` does. Without torchaudio its features are ours."""
    features = family.load_encoder().features(sound)[None]
    count = features.shape[1]
    text = family.prompt_text(said).replace("<|object_ref_start|>", "<|object_ref_start|>" * count)
    ids = family.tokenizer(text, return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "input_features": features, "input_features_mask": torch.ones(1, count, dtype=torch.long)}


@dataclass(frozen=True)
class Case:
    """A family: how its tiny checkpoint is written, and how its native class hears a recording.

    Attributes:
        inputs: what transformers' own processor makes of a recording, `input_ids` among it.
        scale: factor between the native class's logits and those of its causal language model.
    """

    family: type[NativeFamily]
    native: type[PreTrainedModel]
    write: Callable[..., Path]
    inputs: Callable[[NativeFamily, np.ndarray, Utterance], dict[str, Any]]
    seconds: tuple[float, ...] = (0.2, 1.0, 1.37, 5.004, 29.99, 30.0)
    scale: float = 1.0


CASES = {
    "qwen2_audio": Case(
        Qwen2AudioFamily, Qwen2AudioForConditionalGeneration, write_qwen2_audio, qwen2_audio_inputs
    ),
    "voxtral": Case(
        VoxtralFamily, VoxtralForConditionalGeneration, write_voxtral, voxtral_inputs, (0.2, 1.37, 30.0, 31.3)
    ),
    "granite_speech": Case(
        GraniteSpeechFamily, GraniteSpeechForConditionalGeneration, write_granite_speech, granite_speech_inputs,
        (0.2, 1.0, 1.37, 5.004), 1 / LOGITS_SCALING,
    ),
    "qwen2_5_omni": Case(
        Qwen2_5OmniFamily, Qwen2_5OmniThinkerForConditionalGeneration, write_qwen2_5_omni, qwen2_5_omni_inputs,
        (0.2, 1.0, 1.37, 5.004, 31.3),
    ),
    "fun_asr_nano": Case(
        FunAsrNanoFamily, FunAsrNanoForConditionalGeneration, write_fun_asr_nano, fun_asr_nano_inputs,
        (0.2, 1.0, 1.37, 5.004),
    ),
    "glmasr": Case(
        GlmAsrFamily, GlmAsrForConditionalGeneration, write_glmasr, glmasr_inputs, (0.2, 1.37, 29.99, 30.0, 31.3)
    ),
}  # fmt: skip
