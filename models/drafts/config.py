"""What a draft is: its kind, its sizes, the tokens that it may draft."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from globalres_jax.base import Model
from globalres_jax.models.decoder import DecoderConfig, DecoderFn
from globalres_jax.models.layers import AttentionShape, Layer
from globalres_jax.models.llama import LlamaBlock
from globalres_jax.models.rope import Rope

#: Over the target's embedding; the target's first layers; over its last features, too.
EMBEDDING, LAYERS, FEATURE = "embedding", "layers", "feature"
KINDS = (EMBEDDING, LAYERS, FEATURE)

_SIZES = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "mlp_width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """Shape of a draft for a target whose features are D wide. Frozen and hashable.

    The token embedding and the rows of the output head are the target's own. What is
    None follows from the target.

    Attributes:
      kind: "embedding", a transformer over the target's token embedding; "layers", the
        target's first layers, trained further; "feature", a transformer over each
        token's embedding and the target's feature of the token before it (as EAGLE,
        arXiv 2401.15077). The feature is what the target's head multiplies, after its
        last norm; within drafts the draft's own output stands in for it.
      ids: the N tokens that it may draft, different ones; all others it never drafts.
      num_layers: number of layers.
      hidden_size: features between its layers; D if None.
      num_heads: of attention; one for 64 features if None.
      num_kv_heads: that share keys and values; as many as `num_heads` if None.
      head_dim: features of a head; `hidden_size / num_heads` if None.
      mlp_width: width inside the gated MLP; 8/3 of `hidden_size` if None.
      rope_base: of the rotary embedding; the target's rotation if None.
      norm_eps: epsilon of the norms; the target's if None.
      output_map: whether there is a trained linear map before the head, which there is
        anyway where `hidden_size` is not D.
      bias: whether each of the N tokens has a trained bias.

    Raises:
      ValueError: an option out of range; it is named.
    """

    kind: str
    ids: tuple[int, ...]
    num_layers: int = 1
    hidden_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    rope_base: float | None = None
    norm_eps: float | None = None
    output_map: bool = False
    bias: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"kind: must be one of {', '.join(KINDS)}; got {self.kind!r:.60}"
            )
        object.__setattr__(self, "ids", _as_ids(self.ids))
        for name in ("num_layers", *_SIZES):
            value = getattr(self, name)
            if value is None and name != "num_layers":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}: must be a whole number, got {value!r:.60}")
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
            object.__setattr__(self, name, int(value))
        given = [name for name in _SIZES if getattr(self, name) is not None]
        if self.kind == LAYERS and given:
            raise ValueError(
                f"{given[0]}: layers of the target have its sizes; leave it out"
            )

    @property
    def reads_features(self) -> bool:
        """Whether it reads the target's features."""
        return self.kind == FEATURE


@dataclasses.dataclass(frozen=True)
class DraftShape:
    """The sizes of a draft for one target.

    Attributes:
      kind: as in `DraftConfig`.
      decoder: its layers; the width is that of the draft.
      width: D, features of the target.
      num_outputs: N.
      output_map: whether there is a linear map before the head.
      bias: whether the N tokens have a bias.
      embedding_scale: embedded tokens are multiplied by this, if not None.
      logit_cap: soft cap of the target's logits, or None.
    """

    kind: str
    decoder: DecoderConfig
    width: int
    num_outputs: int
    output_map: bool
    bias: bool
    embedding_scale: float | None
    logit_cap: float | None


def target_function(target: Model) -> DecoderFn:
    """The target's function; ValueError for a model that `load` has not loaded."""
    if not isinstance(target.apply, DecoderFn):
        raise ValueError(
            "target: drafts are made for models that `load` has loaded, and this one "
            f"is a {type(target.apply).__name__}"
        )
    return target.apply


def draft_shape(config: DraftConfig, target: DecoderConfig) -> DraftShape:
    """The sizes of a draft for a target of this shape; ValueError if it cannot be."""
    if max(config.ids) >= target.vocab_size:
        raise ValueError(
            f"ids: token {max(config.ids)} of a target whose tokens are "
            f"0-{target.vocab_size - 1}"
        )
    if config.kind == LAYERS:
        count = len(target.layers)
        if config.num_layers > count:
            raise ValueError(
                f"num_layers: {config.num_layers} of a target that has {count}"
            )
        kept = target.layers[: config.num_layers]
        decoder = dataclasses.replace(target, layers=kept)
    else:
        decoder = _own_layers(config, target)
    return DraftShape(
        kind=config.kind,
        decoder=decoder,
        width=target.width,
        num_outputs=len(config.ids),
        output_map=config.output_map or decoder.width != target.width,
        bias=config.bias,
        embedding_scale=target.embedding_scale,
        logit_cap=target.logit_cap,
    )


def _own_layers(config: DraftConfig, target: DecoderConfig) -> DecoderConfig:
    """Layers as Llama has them."""
    width = config.hidden_size or target.width
    heads = config.num_heads or max(1, width // 64)
    shared = config.num_kv_heads or heads
    features = config.head_dim or width // heads
    if heads % shared:
        raise ValueError(f"num_kv_heads: must divide {heads} heads, got {shared}")
    if features % 2 or features < 2:
        raise ValueError(
            f"head_dim: must be even, since rotations pair features; got {features}"
        )
    rotation = target.layers[0].rope
    if config.rope_base is not None:
        rotation = Rope(config.rope_base)
    elif features != target.attention.head_dim:
        rotation = Rope(rotation.base, rotation.scale)
    return DecoderConfig(
        block=LlamaBlock,
        vocab_size=target.vocab_size,
        layers=(Layer(rotation),) * config.num_layers,
        attention=AttentionShape(
            width=width, num_heads=heads, num_kv_heads=shared, head_dim=features
        ),
        mlp_width=config.mlp_width or -(-8 * width // 24) * 8,
        norm_eps=config.norm_eps or target.norm_eps,
    )


def _as_ids(ids: Any) -> tuple[int, ...]:
    """Token ids as a tuple; ValueError if they are none, or not all different."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"ids: expected token ids of shape [N], got {array.dtype} {array.shape}"
        )
    if array.min() < 0:
        raise ValueError(f"ids: {array.min()} is no token")
    if len(np.unique(array)) < array.size:
        raise ValueError("ids: a token is there twice; give each once")
    return tuple(array.tolist())
