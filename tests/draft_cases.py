"""A target of one layer and drafts for it, for tests of what drafts do."""

import functools

import jax

from globalres_jax.base import Model
from globalres_jax.cache import NewCache
from globalres_jax.models import drafts
from globalres_jax.models.decoder import DecoderConfig, DecoderFn
from globalres_jax.models.initialisation import initial_parameters
from globalres_jax.models.layers import AttentionShape, Layer
from globalres_jax.models.llama import LlamaBlock
from globalres_jax.models.rope import Rope

VOCAB_SIZE, WIDTH = 5, 8
IDS = (4, 0, 2, 1)  # token 3 is never drafted


@functools.cache
def target() -> Model:
    """One layer, and logits that differ."""
    config = DecoderConfig(
        block=LlamaBlock,
        vocab_size=VOCAB_SIZE,
        layers=(Layer(Rope()),),
        attention=AttentionShape(width=WIDTH, num_heads=2, num_kv_heads=1, head_dim=4),
        mlp_width=8,
        norm_eps=1e-6,
    )
    function = DecoderFn(config)
    params = initial_parameters(jax.random.key(3), config)
    weight = params["embedding"]["weight"]
    params["embedding"]["weight"] = weight.replace(40 * weight[...])
    return Model(params, function, NewCache(function), VOCAB_SIZE)


@functools.cache
def draft(kind="feature"):
    """(config, parameters, drafter), untrained."""
    sizes = {} if kind == "layers" else {"num_heads": 1, "mlp_width": 8}
    config = drafts.DraftConfig(kind=kind, ids=IDS, **sizes)
    params = drafts.init_draft(jax.random.key(0), config, target())
    return config, params, drafts.make_drafter(params, config, target())
