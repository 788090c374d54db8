"""Words of the embedded corpus, grouped into the slots that the templates of `grammar` fill.

English is in spoken form: lower case, no digits, no punctuation. Mandarin is in simplified characters.
Slots named in KEYWORD_SLOTS are those whose fillers may become an utterance's keywords.
"""

from __future__ import annotations

DIGITS = "zero one two three four five six seven eight nine".split()

ENGLISH: dict[str, list[str]] = {
    "digit": DIGITS,
    "hour": "one two three four five six seven eight nine ten eleven twelve".split(),
    "minute": "five ten fifteen twenty thirty forty fifty".split(),
    "amount": "two three four five six seven eight nine ten twelve twenty thirty fifty".split(),
    "name": (
        "anna ben carla david emma frank grace henry irene jack karen leo maria nina oscar paul rosa "
        "sam tina victor wendy laura peter lucy thomas julia martin susan"
    ).split(),
    "city": (
        "paris london berlin tokyo madrid boston chicago denver dublin lisbon vienna oslo sydney toronto dallas"
    ).split(),
    "venue": (
        "airport station hotel market museum library school hospital park beach bank bridge theatre harbour"
    ).split(),
    "room": ["kitchen", "bedroom", "bathroom", "office", "garage", "garden", "hall", "basement", "living room"],
    "device": (
        "light lamp fan heater radio television camera speaker oven printer alarm computer cooler kettle"
    ).split(),
    "opening": ["door", "window", "gate", "curtain", "front door"],
    "colour": "red green blue yellow gold purple white black pink brown silver".split(),
    "day": "monday tuesday wednesday thursday friday saturday sunday".split(),
    "month": ("january february march april may june july august september october november december").split(),
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
    "food": "coffee tea bread milk rice soup pizza apples bananas cheese eggs sugar salt butter lemons".split(),
    "music": "jazz rock music classical news piano guitar".split(),
    "animal": "cat dog horse bird rabbit tiger".split(),
    "thing": "book letter ticket bag coat shirt car bicycle boat chair table box cup umbrella".split(),
    "person": "mother father brother sister doctor teacher driver manager neighbour".split(),
    "weather": "sunny rainy cold warm windy cloudy snowing".split(),
    "size": "big small new long short".split(),
    "when": ["today", "tomorrow", "tonight", "now", "later", "again", "this morning", "this evening"],
    "bit": ["a little", "a bit"],
    "task": "clean cook study sleep eat swim run dance practice".split(),
    "place_verb": "walk drive travel fly go".split(),
    "subject": "he she they we".split(),
}

MANDARIN: dict[str, list[str]] = {
    "digit": list("零一二三四五六七八九"),
    "hour": list("一二三四五六七八九十"),
    "month": list("一二三四五六七八九十"),
    "day": list("一二三四五六日"),
    "colour": list("红黄蓝白黑绿"),
    "device": ["灯", "电视", "电话"],
    "opening": ["门", "窗"],
    "room": ["客厅", "房间", "厨房"],
    "city": ["北京", "上海"],
    "person": ["妈妈", "爸爸", "老师", "小明", "小红"],
    "when": ["今天", "明天", "早上", "晚上", "下午"],
    "food": ["水", "茶", "米"],
}

KEYWORD_SLOTS = frozenset({"name", "city", "venue", "room", "device", "opening", "person"})

# Left out of random-word sentences, where no context could tell a word from one that sounds the same.
HOMOPHONES = frozenset("to two for four red read by buy right write be no know our hour eight ate".split())
