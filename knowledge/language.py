"""Which language a text is in, from its commonest words: enough to choose a stemmer.

What is said here decides how passages were stemmed when they were learned: a change is a new `knowledge.sparse.NAME`.
"""

import re

_COMMON = {
    "english": (
        "the of and to in is that for it with as was on are be this by you which what how who when where why"
        " did do does from"
    ),
    "german": (
        "der die das und ist nicht ein eine einen einer zu den mit sich auf für dem des von wie was wer ich gibt sind"
        " im am zum zur bei aus nach wurde wurden wird hat haben war welche welcher welches welchen wann wo warum"
        " kann man wem sie er es ihr ihre sein seine welchem wen wieviel viele"
    ),
    "french": (
        "le la les des et est une dans que qui pour pas sur au aux du avec ce quel quelle quels sont où quand comment"
        " il a été"
    ),
    "spanish": "el los las del y es una que en por con para no se al como qué cuál son su cuándo dónde quién cómo fue",
    "italian": "il gli della che è di un una per non con sono del nel come quale quali dei",
    "portuguese": "o os as do da e é um uma que em para com não no na qual quais são dos",
    "dutch": "de het een en van is dat niet op te met voor zijn wat wie hoe welke aan",
    "swedish": "och att det är som en ett på för med av den inte vad hur vilka",
    "russian": "и в не на что он с как это по к из у за что какой кто где",
}
_WORDS = {
    word: [name for name, words in _COMMON.items() if word in words.split()]
    for word in " ".join(_COMMON.values()).split()
}
_LETTERS = {"german": "äöüß", "spanish": "ñ¿¡", "french": "çêœ", "portuguese": "ãõ", "swedish": "å"}
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")


def language_of(text: str) -> str:
    """The English name of the likeliest language; `english` when nothing tells."""
    return guess(text) or "english"


def guess(text: str) -> str:
    """The same, but empty when nothing tells."""
    counts = dict.fromkeys(_COMMON, 0.0)
    start = text[:4000].lower()
    for word in re.findall(r"\w+", start):
        for name in _WORDS.get(word, ()):
            counts[name] += 1 / len(_WORDS[word])
    for name, letters in _LETTERS.items():
        counts[name] += sum(start.count(letter) for letter in letters) / 2
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ""


def is_unspaced(text: str) -> bool:
    """Chinese, Japanese, Korean, Thai: words are not set apart by spaces."""
    return bool(_UNSPACED.search(text))
