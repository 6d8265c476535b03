"""The smallest model there is, and the smallest cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Model


def markov_model(transition: Array) -> Model:
    """A model whose next token depends on the last one alone.

    Args:
      transition: [V, V] rows are next-token distributions.

    Returns:
      A `Model` with a cache that only counts.
    """
    transition = jnp.asarray(transition)
    return Model(
        params=jnp.log(transition),
        apply=_markov_apply,
        init_cache=_markov_cache,
        vocab_size=transition.shape[-1],
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CountingCache:
    """A `base.Cache` that holds nothing but the number of tokens.

    Attributes:
      length: [B] int32.
      capacity: slots of each row.
    """

    length: Array
    capacity: int = dataclasses.field(metadata={"static": True})

    def with_length(self, length: Array) -> CountingCache:
        """The same, for `length [B]` tokens."""
        return dataclasses.replace(self, length=length)

    def keep_path(self, base: Array, nodes: Array, count: Array) -> CountingCache:
        """`count [B]` tokens from the root at `base [B]` on."""
        del nodes
        return self.with_length(base + count)


def _markov_apply(params, tokens, positions, cache: CountingCache, mask):
    del positions, mask
    return params[tokens], cache.with_length(cache.length + tokens.shape[1])


def _markov_cache(batch: int, length: int) -> CountingCache:
    return CountingCache(jnp.zeros(batch, jnp.int32), length)
