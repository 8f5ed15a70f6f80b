"""Which messages does the embedded model take for questions of fact? `python -m benchmarks.outside [--model small]`.

A wrong "fact" declines somebody's small talk; a missed one lets the model answer from its weights. Needs the weights
(`chinwag model pull`).
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from backends import BACKENDS
from bot.messages import Text
from bot.policy import kind_of, sorting_request
from bot.ports import BackendOptions

FACTS = [
    "What is the weather on Mars?",
    "What is the capital of France?",
    "Who won the world cup in 2010?",
    "How old is the universe?",
    "How do I renew a passport?",
    "Wie hoch ist der Eiffelturm?",
    "Who wrote Faust?",
    "What is the income limit for a single person?",
    "How tall is Mount Everest?",
    "When does the office open?",
    "Is the earth flat?",
    "Was ist die Hauptstadt von Peru?",
    "How many people live in Tokyo?",
    "Which bus goes to the airport?",
    "What does the premium plan cost?",
]
OTHERS = [
    "Tell me a joke.",
    "Hello!",
    "Thanks, that helped.",
    "What is my name?",
    "What did we talk about?",
    "Write a haiku about rain.",
    "Wie geht es dir?",
    "ok",
    "Good morning everyone",
    "What did I say I like?",
    "Do you like tea?",
    "Translate 'good night' into French.",
    "Repeat that.",
    "Summarise our conversation.",
    "Who are you?",
    "What can you do?",
    "Fix this sentence: he go home.",
    "Can you help me with my homework?",
    "I feel sad today.",
]


async def main(model: str) -> None:
    """Print what is sorted wrongly, and the rates."""
    with tempfile.TemporaryDirectory() as folder:
        async with BACKENDS["embedded"](BackendOptions(name="embedded", data_dir=Path(folder), model=model)) as backend:
            began, wrong = time.monotonic(), {True: 0, False: 0}
            for text, is_fact in [*((t, True) for t in FACTS), *((t, False) for t in OTHERS)]:
                pieces = [p.text async for p in backend.stream(sorting_request(text)) if isinstance(p, Text)]
                kind = kind_of("".join(pieces))
                if (kind == "fact") != is_fact:
                    wrong[is_fact] += 1
                    print(f"  {text!r} was taken for {kind or 'nothing'}")
            each_s = (time.monotonic() - began) / (len(FACTS) + len(OTHERS))
    rates = f"facts let through {wrong[True]} of {len(FACTS)}, others declined {wrong[False]} of {len(OTHERS)}"
    print(f"{rates}, {each_s:.1f} s each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    asyncio.run(main(parser.parse_args().model))
