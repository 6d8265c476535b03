"""What a checkpoint says about its model, in the words of a `config.json`.

GGUF metadata are translated into the same words (`gguf_file.py`), so that a family
reads both alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from globalres_jax.models.layers import AttentionShape
from globalres_jax.models.rope import Rope, llama3_factors

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Description:
    """Options of a model, by the names of Hugging Face's configurations.

    Attributes:
      options: name to value; None counts as absent.
      origin: file they come from, for messages.
    """

    options: dict[str, Any]
    origin: str

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """An option; ValueError if it is absent and has no default."""
        value = self.options.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ValueError(f"source: {self.origin} lacks {name!r}")
        return default

    def require(self, name: str, *allowed: Any) -> None:
        """ValueError if an option is present and has none of the values known here."""
        value = self.options.get(name)
        if value is not None and value not in allowed:
            known = ", ".join(map(repr, allowed))
            raise ValueError(
                f"source: {self.origin}: {name} is {value!r}; supported: {known}"
            )

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self.get("num_hidden_layers"))

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        shared = int(self.get("hidden_size")) // int(self.get("num_attention_heads"))
        return int(self.get("head_dim", shared))

    @property
    def context_length(self) -> int | None:
        """Most tokens of a text that the model was made for; None if it is not said.

        Where rotations are stretched by a factor, files say what it was before that;
        those of Gemma 3 and of Llama 3 say what it is.
        """
        length = self.get("max_position_embeddings", None)
        if length is None:
            return None
        scaling = self._rope_scaling()
        stretched = scaling.get("rope_type", scaling.get("type")) == "linear"
        if stretched and not self.get("model_type", "").startswith("gemma3"):
            return int(length * float(scaling["factor"]))
        return int(length)

    def attention(self, **changes: Any) -> AttentionShape:
        """Shape of the attention, with a family's own `changes`."""
        heads = int(self.get("num_attention_heads"))
        return AttentionShape(
            width=int(self.get("hidden_size")),
            num_heads=heads,
            num_kv_heads=int(self.get("num_key_value_heads", heads)),
            head_dim=self.head_dim,
            **changes,
        )

    def rope(self, kind: str = "full_attention", base: float = 10_000.0) -> Rope:
        """Rotary embedding of the layers of one kind.

        Older files have `rope_theta` and `rope_scaling`, newer ones `rope_parameters`,
        which may hold one entry for each kind of layer.
        """
        options = self._rope_parameters(kind)
        scaling = self._rope_scaling(kind)
        base = float(options.get("rope_theta", self.get("rope_theta", base)))
        factors = self.get("rope_factors", None)
        if factors is not None:
            return Rope(base, factors=tuple(factors))
        name = scaling.get("rope_type", scaling.get("type", "default"))
        if name == "default":
            return Rope(base)
        if name == "linear":
            return Rope(base, scale=float(scaling["factor"]))
        if name == "llama3":
            words = ("factor", "low_freq_factor", "high_freq_factor")
            words = (*words, "original_max_position_embeddings")
            numbers = {word: scaling[word] for word in words}
            factors = llama3_factors(base, self.head_dim, **numbers)
            return Rope(base, factors=factors)
        raise ValueError(
            f"source: {self.origin}: rope scaling {name!r} is not supported; "
            "supported: default, linear, llama3"
        )

    def _rope_parameters(self, kind: str) -> dict[str, Any]:
        options = self.get("rope_parameters", {})
        return options.get(kind, options)

    def _rope_scaling(self, kind: str = "full_attention") -> dict[str, Any]:
        return self._rope_parameters(kind) or self.get("rope_scaling", {})

    def local_rope(self) -> Rope:
        """Rotary embedding of the layers with a sliding window (Gemma 3)."""
        options = self.get("rope_parameters", {}).get("sliding_attention", {})
        old = self.get("rope_local_base_freq", 10_000.0)
        return Rope(float(options.get("rope_theta", old)))

    def layer_kinds(self, sliding: list[bool]) -> list[bool]:
        """For each layer whether it has a sliding window; `sliding` if not said."""
        kinds = self.get("layer_types", None)
        if kinds is None:
            return sliding
        known = {"full_attention": False, "sliding_attention": True}
        if not set(kinds) <= set(known) or len(kinds) != self.num_layers:
            raise ValueError(
                f"source: {self.origin}: layer_types must be {self.num_layers} of "
                f"{', '.join(known)}; got {kinds}"
            )
        return [known[kind] for kind in kinds]
