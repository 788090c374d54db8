"""Speech codecs: tokens for a language model to speak, and the way back to sound."""

from speech.codecs.base import Codec

__all__ = ["Codec"]
