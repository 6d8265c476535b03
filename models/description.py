"""What a checkpoint says about its model, in the words of a `config.json`.

GGUF metadata are translated into the same words (`gguf_file.py`), so that a family
reads both alike. Every option is checked where it is read: its kind and its range.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

from globalres_jax.models.layers import AttentionShape

#: Largest sizes that a description may have, beyond any model's.
MOST, MOST_WIDTH, MOST_HEADS, MOST_HEAD_DIM = 2**31 - 1, 2**24, 2**16, 2**14
_INFINITE = 1e30

#: Words that only GGUF files have: whether attention's last projection has a bias, and
#: how many layers are from one without a sliding window to the next.
OUT_BIAS, PERIOD = "attn_output.bias", "attention.sliding_window_pattern"


@dataclasses.dataclass(frozen=True)
class Description:
    """Options of a model, by the names of Hugging Face's configurations.

    Attributes:
      options: name to value. None is a value like others: JSON's null.
      origin: file they come from, for messages.
      defaults: what the reference implementation takes for an option not said.
      names: what the file calls an option, where that is another name.
      lead: what stands before every other name in messages.
    """

    options: Mapping[str, Any]
    origin: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lead: str = ""

    def get(self, name: str) -> Any:
        """An option, unchecked; ValueError if it is absent and has no default."""
        if name in self.options:
            return self.options[name]
        if name in self.defaults:
            return self.defaults[name]
        raise ValueError(f"source: {self.origin} lacks {self.name(name)!r}")

    def says(self, name: str) -> bool:
        """Whether an option is there, by itself or by default, and is not None."""
        found = name in self.options or name in self.defaults
        return found and self.get(name) is not None

    def name(self, name: str) -> str:
        """What the file calls an option."""
        return self.names.get(name, self.lead + name)

    def error(self, name: str, allowed: str) -> ValueError:
        """The error that an option is not what is `allowed`."""
        return ValueError(
            f"source: {self.origin}: {self.name(name)} must be {allowed}; got "
            f"{shown(self.get(name))}"
        )

    def whole(self, name: str, least: int = 1, most: int = MOST) -> int:
        """An option that is a whole number from `least` to `most`."""
        value = self.get(name)
        if not is_whole(value) or not least <= value <= most:
            raise self.error(name, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, name: str, above: float = 0, below: float = _INFINITE) -> float:
        """An option that is a number between `above` and `below`, neither included."""
        value = self.get(name)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not above < value < below:  # NaN is not between
            bound = "" if below == _INFINITE else f" and below {below:g}"
            raise self.error(name, f"a number above {above:g}{bound}")
        return float(value)

    def flag(self, name: str) -> bool:
        """An option that is true or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def word(self, name: str, *allowed: str) -> str:
        """An option that is one of the words `allowed`."""
        value = self.get(name)
        if not isinstance(value, str) or value not in allowed:
            known = ", ".join(map(repr, allowed))
            raise ValueError(
                f"source: {self.origin}: {self.name(name)} is {shown(value)}; "
                f"supported: {known}"
            )
        return value

    def within(self, name: str) -> Description:
        """The description that an option is; an empty one where that is None."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "an object")
        return Description(value or {}, self.origin, lead=f"{self.name(name)}.")

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.whole("num_hidden_layers")

    @property
    def head_dim(self) -> int:
        """Features of a head: those of the model in equal parts if it is not said."""
        if self.says("head_dim"):
            features = self.whole("head_dim", 2, MOST_HEAD_DIM)
        else:
            heads = self.whole("num_attention_heads", 1, MOST_HEADS)
            features, rest = divmod(self.whole("hidden_size", 1, MOST_WIDTH), heads)
            if rest or not 0 < features <= MOST_HEAD_DIM:
                raise self.error("num_attention_heads", "a divisor of hidden_size")
        if features % 2:
            name = "head_dim" if self.says("head_dim") else "hidden_size"
            raise self.error(name, "such that rotations pair the features of a head")
        return features

    @property
    def epsilon(self) -> float:
        """What norms add to a mean square, more than nothing in float32."""
        return self.number("rms_norm_eps", 1e-30, 1)

    def attention(self, **changes: Any) -> AttentionShape:
        """Shape of the attention, with a family's own `changes`."""
        heads = self.whole("num_attention_heads", 1, MOST_HEADS)
        shared = heads
        if self.says("num_key_value_heads"):
            shared = self.whole("num_key_value_heads", 1, heads)
            if heads % shared:
                raise self.error("num_key_value_heads", f"a divisor of {heads}")
        return AttentionShape(
            width=self.whole("hidden_size", 1, MOST_WIDTH),
            num_heads=heads,
            num_kv_heads=shared,
            head_dim=self.head_dim,
            **changes,
        )

    def layer_kinds(self, sliding: list[bool]) -> list[bool]:
        """For each layer whether it has a sliding window; `sliding` if not said."""
        if not self.says("layer_types"):
            return sliding
        kinds, count = self.get("layer_types"), self.num_layers
        known = {"full_attention": False, "sliding_attention": True}
        fits = isinstance(kinds, list) and len(kinds) == count
        if not fits or not all(isinstance(k, str) and k in known for k in kinds):
            raise self.error("layer_types", f"a list of {count} of {', '.join(known)}")
        return [known[kind] for kind in kinds]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value in messages, cut short, as JSON has it where that is short."""
    plain = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    return _short.repr(value)


def some(names: list[str]) -> str:
    """The first few of the names, for messages."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"[{', '.join(names[:5])}]{more}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
