"""Manifests: lists of utterances in our own jsonl, Kaldi, FunASR, chat or seed-tts-eval form."""

from speech.manifests.formats import FORMATS, detect_format
from speech.manifests.load import Manifest, load_manifest
from speech.manifests.write import write_manifest

__all__ = ["FORMATS", "Manifest", "detect_format", "load_manifest", "write_manifest"]
