"""A language model of half a megabyte, made on the spot: random weights, a vocabulary of letters, a real GGUF file.

What it says means nothing, but llama.cpp loads it, counts its tokens, streams and stops as it does with any model.
The layout is that of GGUF, version 3: header, key-values, tensor descriptions, then the tensors, each aligned to 32
bytes.
"""

import random
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

WIDTH, HIDDEN, LAYERS, HEADS = 64, 128, 2, 4
LETTERS = [" ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:0123456789"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write(path: Path, *, window: int = 4096) -> Path:
    """Write the file; the same bytes every time."""
    tensors = list(_tensors(len(_vocabulary()[0])))
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(_facts(window)))]
    head.extend(_string(key) + value for key, value in _facts(window).items())
    offset, body = 0, b""
    for name, shape, values in tensors:
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset))
        data = values.tobytes()
        data += bytes(-len(data) % 32)
        body, offset = body + data, offset + len(data)
    header = b"".join(head)
    path.write_bytes(header + bytes(-len(header) % 32) + body)
    return path


def _facts(window: int) -> dict[str, bytes]:
    words, scores, kinds = _vocabulary()
    return {
        "general.architecture": _text("llama"),
        "general.name": _text("tiny"),
        "llama.context_length": _number(window),
        "llama.embedding_length": _number(WIDTH),
        "llama.block_count": _number(LAYERS),
        "llama.feed_forward_length": _number(HIDDEN),
        "llama.rope.dimension_count": _number(WIDTH // HEADS),
        "llama.attention.head_count": _number(HEADS),
        "llama.attention.head_count_kv": _number(HEADS),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", _F32, 1e-5),
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", _ARRAY, _STRING, len(words)) + b"".join(map(_string, words)),
        "tokenizer.ggml.scores": struct.pack(f"<IIQ{len(scores)}f", _ARRAY, _F32, len(scores), *scores),
        "tokenizer.ggml.token_type": struct.pack(f"<IIQ{len(kinds)}i", _ARRAY, _I32, len(kinds), *kinds),
        "tokenizer.ggml.unknown_token_id": _number(0),
        "tokenizer.ggml.bos_token_id": _number(1),
        "tokenizer.ggml.eos_token_id": _number(2),
        "tokenizer.ggml.add_space_prefix": struct.pack("<I?", _BOOL, False),
        "tokenizer.chat_template": _text(TEMPLATE),
    }


def _vocabulary() -> tuple[list[str], list[float], list[int]]:
    special = ["<unk>", "<s>", "</s>"]
    byte_words = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [letter.replace(" ", "\u2581") for letter in LETTERS]
    words = [*special, *byte_words, *letters]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(letters)]
    return words, [0.0] * len(words), kinds


def _tensors(words: int) -> Iterator[tuple[str, Sequence[int], "array[float]"]]:
    dice = random.Random(7)

    def noise(*shape: int) -> tuple[Sequence[int], "array[float]"]:
        size = shape[0] * shape[1]
        return shape, array("f", (dice.uniform(-0.3, 0.3) for _ in range(size)))

    def ones() -> tuple[Sequence[int], "array[float]"]:
        return (WIDTH,), array("f", [1.0] * WIDTH)

    yield ("token_embd.weight", *noise(WIDTH, words))
    yield ("output_norm.weight", *ones())
    silent = array("f", [0.0] * (WIDTH * (words - len(LETTERS))))  # only letters are ever said, never the end
    yield "output.weight", (WIDTH, words), silent + noise(WIDTH, len(LETTERS))[1]
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield (f"blk.{layer}.{name}.weight", *noise(WIDTH, WIDTH))
        yield (f"blk.{layer}.ffn_gate.weight", *noise(WIDTH, HIDDEN))
        yield (f"blk.{layer}.ffn_up.weight", *noise(WIDTH, HIDDEN))
        yield (f"blk.{layer}.ffn_down.weight", *noise(HIDDEN, WIDTH))
        yield (f"blk.{layer}.attn_norm.weight", *ones())
        yield (f"blk.{layer}.ffn_norm.weight", *ones())


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text(text: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(text)


def _number(number: int) -> bytes:
    return struct.pack("<II", _U32, number)
