"""Tiny judges with random weights, in the forms in which real ones come."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
import yaml
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

_SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|zh|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]

_PIECES = 26  # as many as sentencepiece finds in so small a corpus


def write_whisper(folder: Path, *, window_s: int = 2) -> Path:
    """A multilingual Whisper that hears `window_s` seconds at once."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=window_s)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=50 * window_s,
        max_target_positions=96,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits far from uniform, so that another sound reads otherwise
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in ("<|en|>", "<|zh|>")},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_length=96,
    )
    model.save_pretrained(folder)
    return folder


def write_paraformer(folder: Path, *, hears: bool = True) -> Path:
    """A Paraformer of funasr: configuration, tokens and weights.

    Args:
        hears: otherwise its predictor counts no token in any wave.
    """
    from funasr.models.paraformer.model import Paraformer

    folder.mkdir(parents=True)
    tokens = ["<blank>", "<s>", "</s>", *"abcdefghijkl", "<unk>"]
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    sizes = {"attention_heads": 2, "linear_units": 16, "num_blocks": 2, "kernel_size": 3, "sanm_shfit": 0}
    parts = {
        "encoder": "SANMEncoder",
        "encoder_conf": {**sizes, "output_size": 16, "input_layer": "pe", "pos_enc_class": "SinusoidalPositionEncoder"},
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {**sizes, "att_layer_num": 2},
        "predictor": "CifPredictorV2",
        "predictor_conf": {"idim": 16, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
    }
    model_conf = {"ctc_weight": 0.0, "sos": 1, "eos": 2}
    frontend = {"fs": 16000, "window": "hamming", "n_mels": 8, "frame_length": 25, "frame_shift": 10}
    settings = {
        "model": "Paraformer",
        "model_conf": model_conf,
        **parts,
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "token_list": str(folder / "tokens.json")},
        "frontend": "WavFrontend",
        "frontend_conf": {**frontend, "lfr_m": 7, "lfr_n": 6},
        "init_param": str(folder / "model.pt"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    torch.manual_seed(0)
    model = Paraformer(input_size=8 * 7, vocab_size=len(tokens), **parts, **model_conf)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.predictor.cif_output.bias.fill_(1.0 if hears else -1e4)
    torch.save(model.state_dict(), folder / "model.pt")
    return folder


def write_sense_voice(folder: Path) -> Path:
    """A SenseVoiceSmall of funasr: configuration, sentencepiece model and weights."""
    from funasr.models.sense_voice.model import SenseVoiceSmall

    folder.mkdir(parents=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("turn on the light\nturn off the lamp\nopen the door please\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "bpe"),
        vocab_size=_PIECES,
        user_defined_symbols=["<|en|>", "<|NEUTRAL|>"],
        minloglevel=2,
    )
    encoder = {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 2,
        "tp_blocks": 1,
        "kernel_size": 3,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
    }
    settings = {
        "model": "SenseVoiceSmall",
        "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
        "encoder": "SenseVoiceEncoderSmall",
        "encoder_conf": encoder,
        "tokenizer": "SentencepiecesTokenizer",
        "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
        "frontend": "WavFrontend",
        "frontend_conf": {"fs": 16000, "window": "hamming", "n_mels": 8, "frame_length": 25, "frame_shift": 10},
        "init_param": str(folder / "model.pt"),
    }
    settings["frontend_conf"] |= {"lfr_m": 7, "lfr_n": 6}  # type: ignore[operator]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    torch.manual_seed(0)
    model = SenseVoiceSmall(
        encoder="SenseVoiceEncoderSmall", encoder_conf=encoder, input_size=8 * 7, vocab_size=_PIECES, sos=1, eos=2
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    torch.save(model.state_dict(), folder / "model.pt")
    return folder
