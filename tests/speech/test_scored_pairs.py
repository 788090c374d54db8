"""Pairs of texts with the number of errors that their reader would count."""

from __future__ import annotations

import pytest

from speech.edits import character_edits, word_edits

ENGLISH = [
    # no word beside a number is free
    ("it costs one dollar", "it costs one", 1),
    ("it costs one dollar", "it costs $1", 0),
    ("it costs one dollar", "it costs 1 $", 0),
    ("one percent of them", "one of them", 1),
    ("one percent of them", "1% of them", 0),
    ("five per cent", "5 %", 0),
    ("a thousand thousand", "a thousand", 1),
    ("minus five dollars", "five dollars", 1),
    ("minus five dollars", "-$5", 0),
    ("minus five dollars", "−$5", 0),
    ("zero hundred", "zero", 1),
    ("five point hundred", "five hundred", 3),
    # what was said in other words differs, though not from digits
    ("one hundred twenty", "one twenty", 1),
    ("one hundred twenty", "120", 0),
    ("one twenty", "120", 0),
    ("one hundred and five", "one hundred five", 1),
    ("one hundred and five", "105", 0),
    ("a hundred of a hundred", "a hundred of one hundred", 1),
    ("five million", "5 million", 0),
    ("a million", "1 million", 0),
    ("a million", "one million", 1),
    ("a dollar", "the dollar", 1),
    ("a dollar", "dollar", 1),
    ("two plus two equals four", "2 + 2 = 4", 0),
    ("two two", "2+2", 2),
    ("three times four", "3×4", 0),
    ("twenty four seven", "24/7", 0),
    ("ten thousand", "10 000", 0),
    ("version three point two point one", "version 3.2.1", 0),
    ("double o seven", "007", 0),
    ("three hundred and first", "301st", 0),
    ("minus two degrees", "-2°", 0),
    ("five dollar bill", "$5 bill", 0),
    # written forms
    ("three point one", "3.1", 0),
    ("three point zero five", "3.05", 0),
    ("three point zero", "3.0", 0),
    ("three", "3.0", 1),
    ("zero point five", "0.5", 0),
    ("point five percent", ".5%", 0),
    ("two and a half hours", "2½ hours", 0),
    ("two and a half hours", "2.5 hours", 0),
    ("one half", "½", 0),
    ("twelve hundred", "1,200", 0),
    ("twenty first", "21st", 0),
    ("in nineteen eighty four", "in 1984", 0),
    ("the nineteen eighties", "the 1980s", 0),
    ("oh oh seven", "007", 0),
    ("seven", "007", 1),
    ("five million dollars", "$5 million", 0),
    ("five million dollars", "$5m", 0),
    ("two dollars and seven cents", "$2.07", 0),
    ("fifty cents", "$0.50", 0),
    ("three euros", "3€", 0),
    ("three pounds", "£3.00", 0),
    ("five yen", "¥5", 0),
    ("twenty degrees celsius", "20 °C", 0),
    ("twenty degrees", "20°", 0),
    ("twenty degrees", "20", 1),
    ("number five", "#5", 0),
    ("salt and pepper", "salt & pepper", 0),
    # groups and times
    ("call five five five one two one two", "call 555 1212", 0),
    ("call five five five one two one two", "call 555-1212", 0),
    ("call five five five one two one two", "call 555 1213", 2),
    ("it is three thirty", "it is 3:30", 0),
    ("it is three oh five", "it is 3:05", 0),
    ("it is three five", "it is 3:05", 2),
    ("it is three o'clock", "it is 3:00", 0),
    ("it is three p.m.", "it is 3:00 PM", 0),
    ("it is three pm", "it is 3 p.m.", 0),
    # apostrophes and quotes
    ("don’t stop, it’s fine", "don't stop, it's fine", 0),
    ("donʼt stop, it＇s `fine´", "don't stop, “it's fine”", 0),
    ("don‘t", "dont", 2),
    ("the number is one two five two", "the number is oneort4 two", 2),
    ("in 2020 five people", "in 2020 5 people", 0),
    # Control characters: nobody writes them, so that a model that samples one has made an error.
    ("play jazz by paul please", "play jazz by paul\x12 please", 1),
]

OTHERS = [
    ("hello\u200b world", "hello world", "en", 0),
    ("\ufeffhel\u00adlo \u202bworld\u202c", "hello world", "en", 0),
    ("ｈｅｌｌｏ ﬁsh", "hello fish", "en", 0),
    ("hello\u2060 Welt", "hello welt", "de", 0),
    ("Große Straße", "grosse Straße", "de", 1),
    ("555 1212", "5551212", "de", 0),
    ("5 %", "5%", "de", 0),
    ("5 %", "5", "de", 1),
    ("−5 °C", "-5°C", "de", 0),
    ("−5 °C", "5 °C", "de", 1),
    ("l’homme", "l'homme", "fr", 0),
    ("İstanbul'da ISINMA", "istanbul'da ısınma", "tr", 0),
    ("ISPARTA", "isparta", "tr", 1),
    ("İstanbul", "istanbul", "de", 0),
    ("ΟΔΟΣ", "οδος", "el", 0),
    ("كتاب", "کتاب", "fa", 0),
    ("علي ۱۲٣", "علی 123", "fa", 0),
    ("مي\u200cخواهم", "میخواهم", "fa", 0),
    ("كتـــاب", "كِتَاب", "ar", 0),
    ("٢٥٪", "25%", "ar", 0),
    ("كتاب", "كتب", "ar", 1),
    ("کہ", "كه", "ur", 0),
    ("१२ घंटे", "12 घंटे", "hi", 0),
    ("क़लम", "क\u093cलम", "hi", 0),
    ("東京（とうきょう）です", "東京です", "ja", 0),
    ("温度は-5度", "温度は5度", "ja", 1),
    ("ｱｲｳ１２", "アイウ12", "ja", 0),
    ("葛\U000e0100城", "葛城", "ja", 0),
    ("สวัส\u200bดี", "สวัสดี", "th", 0),
    ("I'm twenty one", "I am 21", "eng", 0),
    ("今日はとても天気がいいです", "今日はとても天気がよいです", "jp", 1),
]

CHINESE = [
    ("200平米", "二百平米", 0),
    ("200平米", "两百平米", 0),
    ("200平米", "一百平米", 1),
    ("2点", "两点", 0),
    ("2点", "二点", 0),
    ("2个", "二个", 0),
    ("2个", "个", 1),
    ("2月", "两月", 1),
    ("13812345678", "幺三八一二三四五六七八", 0),
    ("13812345678", "一三八幺二三四五六七八", 0),
    ("13812345678", "幺三八一二三四五六七", 1),
    ("二〇〇八年", "2008年", 0),
    ("2008", "二零零八", 0),
    ("2008", "两千零八", 0),
    ("301房间", "三零一房间", 0),
    ("301房间", "三百零一房间", 0),
    ("10:30", "十点三十", 0),
    ("10:30", "十点三十分", 0),
    ("10:30", "十点半", 0),
    ("10:30", "十点", 2),
    ("25%", "百分之二十五", 0),
    ("百分之25", "25％", 0),
    ("3.14", "三点一四", 0),
    ("½", "二分之一", 0),
    ("2½", "二又二分之一", 0),
    ("1,234", "一千二百三十四", 0),
    ("5$", "五美元", 0),
    ("100㎡", "一百平方米", 0),
    ("这也<strong>太</strong>好了[breath]", "这也太好了", 0),
    ("［laughter］好", "好", 0),
    ("他说（你好）", "他说", 2),
    ("幺妹", "一妹", 1),
    ("两难", "二难", 1),
]


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), ENGLISH)
def test_english(reference: str, hypothesis: str, errors: int) -> None:
    assert word_edits(reference, hypothesis, "en").errors == errors
    assert (word_edits(hypothesis, reference, "en").errors == 0) == (errors == 0)
    assert (character_edits(reference, hypothesis, "en").errors == 0) == (errors == 0)


@pytest.mark.parametrize(("reference", "hypothesis", "language", "errors"), OTHERS)
def test_other_languages(reference: str, hypothesis: str, language: str, errors: int) -> None:
    assert word_edits(reference, hypothesis, language).errors == errors


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), CHINESE)
def test_chinese(reference: str, hypothesis: str, errors: int) -> None:
    assert word_edits(reference, hypothesis, "zh").errors == errors
    assert (word_edits(hypothesis, reference, "zh").errors == 0) == (errors == 0)
