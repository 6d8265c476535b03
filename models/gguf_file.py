"""GGUF files, through the `gguf` package.

Metadata are translated into the words of a `config.json`; tensors are dequantised a
block of rows at a time, so that no second copy of a large one is ever held.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from globalres_jax.models.description import Description

#: What the library loads; tests hold each of them to the package's own arithmetic.
SUPPORTED_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)

#: `config.json`'s word for each of a family's metadata.
_WORDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}

_EMBEDDING, _HEAD, _ROPE_FACTORS = (
    "token_embd.weight",
    "output.weight",
    "rope_freqs.weight",
)


class _Reader(gguf.GGUFReader):
    """The package's reader, with arrays read in one go.

    The package makes several views for every element, which takes many seconds for a
    vocabulary.
    """

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = self._get(orig_offs, np.uint32)
        count = self._get(orig_offs + 4, np.uint64)
        start, element = orig_offs + 12, gguf.GGUFValueType(int(kind[0]))
        types = [gguf.GGUFValueType.ARRAY, element]
        if element in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[element], count[0])
            values = np.asarray(values)  # a memory map is slow to cut up
            if len(values) < count[0]:
                raise ValueError("an array ends after the file does")
            parts = [kind, count, *values[:, None]]
            return 12 + values.nbytes, parts, list(range(2, len(parts))), types
        if element != gguf.GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        order = "big" if self.byte_order == "S" else "little"
        view, end, strings = memoryview(self.data), start, []
        for _ in range(int(count[0])):
            size = int.from_bytes(view[end : end + 8], order)
            strings.append(view[end + 8 : end + 8 + size])
            end += 8 + size
            if end > len(view):
                raise ValueError("a string ends after the file does")
        parts = [kind, count, *strings]
        return end - orig_offs, parts, list(range(2, len(parts))), types


class GGUFFile:
    """One open file: its metadata, and its tensors as a `TensorSource`."""

    scheme = "gguf"

    def __init__(self, path: Path):
        """Opens `path`; ValueError if it is not a whole GGUF file."""
        self.path = path
        try:
            self._reader = _Reader(path)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(
                f"source: {path} is no GGUF file, or truncated: {error}"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def metadata(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    @property
    def architecture(self) -> str:
        """What the file calls its family."""
        return str(self.metadata("general.architecture"))

    def description(self) -> Description:
        """The metadata in the words of a `config.json`."""
        options = {
            word: _shortest(self.metadata(f"{self.architecture}.{key}"))
            for key, word in _WORDS.items()
        }
        options["model_type"] = self.architecture
        if _EMBEDDING in self._tensors:
            options["vocab_size"] = self.shape(_EMBEDDING)[0]
        options["tie_word_embeddings"] = _HEAD not in self._tensors
        options["attention_bias"] = "blk.0.attn_output.bias" in self._tensors
        if _ROPE_FACTORS in self._tensors:
            factors = self.read(_ROPE_FACTORS, 0, self.shape(_ROPE_FACTORS)[0])
            options["rope_factors"] = [float(x) for x in factors]
        scaling = self.metadata(f"{self.architecture}.rope.scaling.type")
        factor = self.metadata(f"{self.architecture}.rope.scaling.factor")
        if scaling not in (None, "none"):
            options["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        if self.architecture.startswith("gemma"):
            options |= self._gemma_scale(options)
        return Description(options, str(self.path))

    def _gemma_scale(self, options: dict[str, Any]) -> dict[str, Any]:
        """What GGUF leaves to the reader: only the 27B models scale by the width."""
        largest = {"gemma2": 46, "gemma3": 62}.get(self.architecture)
        if options["num_hidden_layers"] != largest:
            return {"query_pre_attn_scalar": options["head_dim"]}
        scalar = options["hidden_size"] / options["num_attention_heads"]
        return {"query_pre_attn_scalar": scalar}

    def names(self) -> set[str]:
        """Names of all tensors but those that `description` has read."""
        return set(self._tensors) - {_ROPE_FACTORS}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor as floats."""
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        if kind not in SUPPORTED_TYPES:
            raise ValueError(
                f"source: {self.path}: tensor {name} has type {kind}, which is not "
                f"supported; supported: {', '.join(SUPPORTED_TYPES)}"
            )
        return gguf.quants.dequantize(tensor.data[start:stop], tensor.tensor_type)

    def forget(self) -> None:
        """Lets go of the pages of the file that were read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._reader.data._mmap.madvise(mmap.MADV_DONTNEED)


def _shortest(value: Any) -> Any:
    """The number that was meant: files round 1e-6 to 9.99999997e-7, the next float32.

    Read as the same number as in a folder, it makes the same program.
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value
