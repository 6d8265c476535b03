"""GGUF files, through the `gguf` package.

Tensors are dequantised a block of rows at a time, so that no second copy of a large
one is ever held.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from globalres_jax.models.description import Description, is_whole, shown, some
from globalres_jax.models.gguf_metadata import ROPE_FACTORS, describe

#: What the library loads; tests hold each of them to the package's own arithmetic.
SUPPORTED_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)

#: Bytes that are worth a call of the package's, and with sixteen times as many a cache.
_LONG_ROW = 1 << 13

_PART = re.compile(r"(?P<lead>.*)-00001-of-(?P<count>\d{5})\.gguf")


class _Reader(gguf.GGUFReader):
    """The package's reader, with arrays read in one go.

    The package makes several views for every element, which takes many seconds for a
    vocabulary.
    """

    def _push_field(self, field, skip_sum=False):
        if field.name in self.fields:
            raise KeyError(f"{field.name} is there twice")
        return super()._push_field(field, skip_sum)

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
    """One open file: its metadata, and its tensors as a `TensorSource`.

    A model that was split is opened whole by the first of its files.
    """

    scheme = "gguf"

    def __init__(self, path: Path):
        """Opens `path`; ValueError if it is not a whole GGUF file."""
        self.path = path
        first = _open(path)
        self._fields = first.fields
        self._readers = [first, *map(_open, self._other_parts())]
        self._tensors: dict[str, Any] = {}
        for part, reader in enumerate(self._readers, 1):
            for tensor in reader.tensors:
                if tensor.name in self._tensors:
                    raise ValueError(
                        f"source: {path}: tensor {tensor.name} is stored twice, the "
                        f"second time in part {part}"
                    )
                self._tensors[tensor.name] = tensor
        self._check_count()
        self._check_types()

    def _other_parts(self) -> list[Path]:
        """The other files of a model that was split."""
        count, part = self.metadata("split.count", 1), self.metadata("split.no", 0)
        if not is_whole(count) or not is_whole(part):
            raise ValueError(
                f"source: {self.path}: split.count and split.no must be whole numbers; "
                f"got {shown(count)} and {shown(part)}"
            )
        if count <= 1:
            return []
        named = _PART.fullmatch(self.path.name)
        if part != 0 or named is None or int(named["count"]) != count:
            raise ValueError(
                f"source: {self.path} is part {part + 1} of a model that was split "
                f"into {count} files; give the first, NAME-00001-of-{count:05}.gguf, "
                "beside which the others lie"
            )
        names = [
            f"{named['lead']}-{part:05}-of-{count:05}.gguf"
            for part in range(2, count + 1)
        ]
        missing = [name for name in names if not (self.path.parent / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"source: {self.path} is the first of {count} files; missing: "
                f"{some(missing)}"
            )
        return [self.path.parent / name for name in names]

    def _check_count(self) -> None:
        """ValueError if not all tensors of a model that was split are there."""
        count = self.metadata("split.tensors.count")
        if count is not None and count != len(self._tensors):
            raise ValueError(
                f"source: {self.path} and the parts beside it have "
                f"{len(self._tensors)} tensors; split.tensors.count says {count}"
            )

    def _check_types(self) -> None:
        """ValueError if a tensor is of a type that cannot be read."""
        for name, tensor in self._tensors.items():
            kind = tensor.tensor_type.name
            if kind not in SUPPORTED_TYPES:
                raise ValueError(
                    f"source: {self.path}: tensor {name} has type {kind}, which is not "
                    f"supported; supported: {', '.join(SUPPORTED_TYPES)}"
                )

    def keys(self) -> list[str]:
        """The keys of the metadata."""
        return list(self._fields)

    def metadata(self, key: str, default: Any = None) -> Any:
        """The value of a key; ValueError if it is text in no encoding."""
        field = self._fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ValueError(
                f"source: {self.path}: {key} is unreadable: {error}"
            ) from error

    @property
    def architecture(self) -> str | None:
        """What the file calls its family; None if it does not say."""
        name = self.metadata("general.architecture")
        if name is not None and not isinstance(name, str):
            raise ValueError(
                f"source: {self.path}: general.architecture must be a name; got "
                f"{shown(name)}"
            )
        return name

    def description(self, defaults: Mapping[str, Any]) -> Description:
        """The metadata in the words of a `config.json`."""
        return describe(self, defaults)

    def names(self) -> set[str]:
        """Names of all tensors but those that `description` has read."""
        read = {ROPE_FACTORS} if self.architecture == "llama" else set()
        return set(self._tensors) - read

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def has(self, name: str) -> bool:
        """Whether there is a tensor of a name."""
        return name in self._tensors

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor as floats."""
        tensor = self._tensors[name]
        # A view of a memory map that is one itself costs as much as the arithmetic.
        stored = np.asarray(tensor.data)[start:stop]
        return _dequantized(stored, tensor.tensor_type)

    def forget(self) -> None:
        """Lets go of the pages of the files that were read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for reader in self._readers:
                reader.data._mmap.madvise(mmap.MADV_DONTNEED)


def _dequantized(stored: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows as floats, long ones: the package works on sixteen at a time."""
    if stored.ndim != 2:
        return gguf.quants.dequantize(stored, kind)
    rows, size = stored.shape
    joined = max(1, min(rows, _LONG_ROW // size))
    while rows % joined:
        joined -= 1
    values = gguf.quants.dequantize(stored.reshape(rows // joined, -1), kind)
    return values.reshape(rows, -1)


def _open(path: Path) -> _Reader:
    try:
        return _Reader(path)
    except (
        *(ValueError, KeyError, IndexError, TypeError, OverflowError),
        *(RecursionError, MemoryError),
    ) as error:
        raise ValueError(
            f"source: {path} is no GGUF file, or truncated: {error}"
        ) from error
