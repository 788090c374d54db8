"""Chinese as it is scored: numbers in characters by wetext's grammar, traditional as simplified, no punctuation."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from wetext import Normalizer

from speech.text.characters import fold, lower

_TAG: Final = re.compile(r"<\|?/?[a-z][a-z_-]*\|?>|\[[a-z][a-z_-]*\]", re.IGNORECASE)
_UNITS: Final = {"㎡": "平方米", "㎥": "立方米", "㎢": "平方千米", "m²": "平方米", "m³": "立方米"}
_BEFORE: Final = (
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(\d[\d.]*)\s*([$£€¥])"), r"\2\1"),
    (re.compile(r"(\d) (?=\d+/\d)"), r"\1又"),
    (re.compile(r"%\s*[-~]\s*(?=\d)"), "%到"),
)
_NUMERAL: Final = "零一二三四五六七八九十百千万亿"
_MEASURE: Final = (
    "个位名只件辆本次天年周小时分秒点米公里千克斤吨升元块角倍人家张条种层间句双对把支座台部份场段岁度口头匹片颗棵根"
    "篇首杯瓶碗盒包套组类批步行排页遍趟回顿声幅艘架扇户副笔门项代厘毫平立英"
)
_TWO: Final = re.compile(f"两(?=[百千万亿{_MEASURE}])")
_YAO: Final = re.compile(f"(?<=[{_NUMERAL}幺])幺|幺(?=[{_NUMERAL}幺])")


class ChineseRules:
    """A text → its characters in scored form."""

    def __init__(self) -> None:
        self._grammar = Normalizer(lang="zh", operator="tn", traditional_to_simple=True)

    def __call__(self, text: str) -> str:
        if not text.isascii():
            for sign, name in _UNITS.items():
                text = text.replace(sign, name)
        text = _TAG.sub("", fold(text, "zh"))
        for pattern, replacement in _BEFORE:
            text = pattern.sub(replacement, text)
        spoken = lower(self._grammar.normalize(text), "zh")
        characters = "".join(c for c in spoken if unicodedata.category(c)[0] in "LNM").replace("〇", "零")
        # Both readings of one number are right, and which of them a text has is often the grammar's choice.
        return _YAO.sub("一", _TWO.sub("二", characters))
