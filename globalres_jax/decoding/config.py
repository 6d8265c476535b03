"""How to speculate: one frozen, hashable description, checked when it is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from globalres_jax.base import NO_TOKEN, Array, TreeVerifier, Verifier
from globalres_jax.bregman import Bregman
from globalres_jax.decoding.kinds import (
    optional,
    to_bregman,
    to_flag,
    to_integer,
    to_law,
    to_tree,
    to_verifier,
)
from globalres_jax.decoding.logit_bias import as_pairs
from globalres_jax.decoding.options import (
    NUMBERS,
    SamplingOptions,
    broken_rows,
    mended,
)
from globalres_jax.decoding.penalties import TextCounts, adjusted
from globalres_jax.draft_laws import IID
from globalres_jax.numerics.largest import nearly_largest
from globalres_jax.tree import TokenTree, check_size, paths
from globalres_jax.tree_verifiers import LayerResolution, as_tree_verifier
from globalres_jax.validation import LARGEST, as_number

#: `law(probs [V], num_drafts, max_support=...)`: the class of a law, or a function.
LawMaker = Callable[..., Any]

#: As a tree: the shape that pays, see `globalres_jax.planning`.
AUTO = "auto"


def _to_tree(name: str, value: Any) -> TokenTree | str:
    return value if isinstance(value, str) and value == AUTO else to_tree(name, value)


#: What each option must be, and becomes: numbers of numpy and JAX are Python's then.
_KINDS = {
    "num_drafts": to_integer(1),
    "draft_length": to_integer(0),
    "draft_top_k": optional(to_integer(1, None)),
    "draft_temperature": optional(as_number),
    "cache_length": optional(to_integer(1)),
    "pad_id": to_integer(-LARGEST),
    "temperature": as_number,
    "top_k": optional(to_integer(1, None)),
    "top_p": optional(as_number),
    "min_p": optional(as_number),
    "repetition_penalty": optional(as_number),
    "presence_penalty": optional(as_number),
    "frequency_penalty": optional(as_number),
    "min_new_tokens": optional(to_integer(0)),
    "logit_bias": as_pairs,
    "bregman": optional(to_bregman),
    "measure_optimum": to_flag,
    "log_probabilities": to_flag,
    "top_log_probabilities": to_integer(0),
    "tree": optional(_to_tree),
    "law": optional(to_law),
    "verifier": to_verifier,
}

#: What stands for None where the tree is given; a plan chooses it else.
_DEFAULTS = {"law": IID, "draft_top_k": 256}

#: Drafted paths where nodes are cheap: with the default length and the root, 16 nodes,
#: a size that matrix units like.
_PATHS = 3


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Options of `generate`. Frozen and hashable.

    Attributes:
      num_drafts: number of drafted paths. If None, 1 on a CPU, which pays for every
        drafted token, and 3 elsewhere.
      draft_length: tokens on each path; 0 is plain decoding.
      tree: shape of the token tree; `paths(num_drafts, draft_length)` if None. Where
        it is given, it alone counts. "auto" is the shape that pays, with the `law`,
        `draft_top_k` and `draft_temperature` that do, where these are None: `generate`
        measures model calls and drafts before it compiles, remembers what it found, and
        learns from what it decodes. All are lossless, so the law of the text does not
        depend on the choice, but what a given key writes does.
      law: draft law of the children of a node, `law(probs, num_drafts,
        max_support=...)`: one for all levels, or a tuple with one for each; `IID` if
        None. Paths of `IID` drafts that spell the same text are merged.
      verifier: a rule for whole trees, or one for single positions. The default accepts
        the longest runs; of one path it makes block verification.
      temperature, top_k, top_p, min_p: sampling options, for target and draft alike,
        applied in this order; temperature 0 is greedy. Data to the compiled program,
        and `generate` takes `SamplingOptions` for each row instead.
      repetition_penalty, presence_penalty, frequency_penalty, min_new_tokens,
        logit_bias: likewise, before the temperature; see `SamplingOptions`.
      bregman: a transform of what `top_k` keeps, in place of `top_p` and `min_p`, see
        `Bregman`; data likewise.
      draft_top_k: drafts are drawn from so many likeliest tokens of the draft's row,
        256 if None. Any number is exact, since what is drawn from is what is verified;
        a smaller one costs acceptance and saves time. From V on, from all.
      draft_temperature: times `temperature` in the draft's rows, 1 if None. Exact, too,
        and data; `SamplingOptions` that have none take this one.
      cache_length: slots of the key/value caches; what is needed if None.
      pad_id: fills `Generation.tokens` after the end of a row.
      measure_optimum: whether to compute and count what the optimal rule would accept.
        `GlobalResolution` counts it anyway, from its plans. Rules for whole trees are
        not bound by it: the longest run is not the best rule at each position.
      log_probabilities: whether to compute the log-probabilities of what is emitted
        under the target, see `Generation`. If not, none are compiled.
      top_log_probabilities: number of likeliest tokens whose log-probabilities are
        wanted in every place, 0 for none; with some, `log_probabilities` is true.

    Raises:
      ValueError, TypeError: an option out of range, or a rule that does not serve a
        law of the tree.
    """

    num_drafts: int | None = None
    draft_length: int = 5
    tree: TokenTree | Literal["auto"] | None = None
    law: LawMaker | tuple[LawMaker, ...] | None = None
    verifier: Verifier | TreeVerifier = LayerResolution()
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_new_tokens: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    bregman: Bregman | None = None
    draft_top_k: int | None = None
    draft_temperature: float | None = None
    cache_length: int | None = None
    pad_id: int = -1
    measure_optimum: bool = False
    log_probabilities: bool = False
    top_log_probabilities: int = 0

    def __post_init__(self):
        if self.num_drafts is None:
            number = 1 if jax.default_backend() == "cpu" else _PATHS
            object.__setattr__(self, "num_drafts", number)
        for name, convert in _KINDS.items():
            object.__setattr__(self, name, convert(name, getattr(self, name)))
        if self.top_log_probabilities:
            object.__setattr__(self, "log_probabilities", True)
        _ = self.sampling  # checks the options
        if self.tree == AUTO:
            if isinstance(self.law, tuple):
                raise ValueError(
                    f'law: tree="auto" needs one law for all levels, got '
                    f"{len(self.law)}"
                )
            return
        for name, value in _DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.tree is None:
            nodes = 1 + self.num_drafts * self.draft_length
            check_size("num_drafts, draft_length", nodes)
        depth = self.token_tree.depth
        if isinstance(self.law, tuple) and len(self.law) != depth:
            raise ValueError(
                f"law: {len(self.law)} laws for a tree of {depth} levels; give one for "
                "each level, or one for all"
            )
        # Traced and not run, so that nothing is compiled.
        jax.eval_shape(
            lambda: self.tree_verifier.check(self.token_tree, self._sample_laws())
        )

    @property
    def token_tree(self) -> TokenTree:
        """The shape of the tree: `tree`, or what the numbers stand for.

        Raises:
          ValueError: `tree="auto"`, which is no shape yet.
        """
        if self.tree == AUTO:
            raise ValueError(
                'tree: "auto" is no shape before `generate` or `plan` has chosen one'
            )
        if self.tree is not None:
            return self.tree
        return paths(self.num_drafts, self.draft_length)

    @property
    def tree_verifier(self) -> TreeVerifier:
        """The rule for whole trees."""
        return as_tree_verifier(self.verifier)

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options, the same for all rows."""
        return SamplingOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            min_new_tokens=self.min_new_tokens,
            logit_bias=None if self.logit_bias is None else dict(self.logit_bias),
            bregman=self.bregman,
            draft_temperature=self.draft_temperature,
        )

    def law_of_level(self, level: int) -> LawMaker:
        """What draws the children of the nodes at a level of the tree."""
        return self.law[level] if isinstance(self.law, tuple) else self.law

    def plain(self) -> SpeculativeConfig:
        """The same sampling options, one token a step, no drafts."""
        return dataclasses.replace(
            self, tree=TokenTree((-1,)), law=IID, verifier=LayerResolution()
        )

    def program(self) -> SpeculativeConfig:
        """What of it fixes the compiled program: sampling options are data."""
        return _program(self)

    def capacity(self, width: int, max_new_tokens: int) -> int:
        """Slots of the caches for prompts of `width` tokens.

        Raises:
          ValueError: `cache_length` is too short for prompt, text and tree.
        """
        nodes = self.token_tree.num_nodes
        needed = width + max_new_tokens + nodes
        capacity = needed if self.cache_length is None else self.cache_length
        if nodes > capacity:
            raise ValueError(
                f"cache_length: a draft of {nodes} nodes does not fit {capacity} slots"
            )
        if width > capacity:
            raise ValueError(
                f"cache_length: a prompt of {width} tokens does not fit {capacity} "
                "slots"
            )
        if needed > capacity:
            raise ValueError(
                f"cache_length: {width} prompt tokens, {max_new_tokens} new ones and a "
                f"draft of {nodes} nodes need {needed} slots, got {capacity}"
            )
        return capacity

    def _sample_laws(self) -> tuple:
        """A small law of each sibling group: what rules are checked on."""

        def of_group(group):
            size = max(group.num_children, 2)
            law = self.law_of_level(group.level)
            return law(jnp.full(size, 1 / size), group.num_children)

        return tuple(map(of_group, self.token_tree.groups))


@functools.lru_cache(maxsize=64)
def _program(config: SpeculativeConfig) -> SpeculativeConfig:
    """Kept, since to check a config takes longer than many a request."""
    return dataclasses.replace(
        config,
        **(dict.fromkeys(NUMBERS) | {"temperature": 1.0}),
        logit_bias=None,
        bregman=None,
        cache_length=None,
    )


@dataclasses.dataclass(frozen=True)
class SampledPolicy:
    """The `DraftPolicy` of a request: its law and its options, for every row.

    Attributes:
      config: which law draws at each level.
      options: for each row [B].
      vocab_size: V of the target.
      counts: of the text, None where the options do not ask for them.
      ends: [B, E] tokens that end each row, -1 for none.
    """

    config: SpeculativeConfig
    options: SamplingOptions
    vocab_size: int
    counts: TextCounts | None
    ends: Array

    @property
    def reads_paths(self) -> bool:
        """Whether what is drawn depends on the tokens down to a node."""
        return self.options.reads_text

    def maker(self, level: int) -> LawMaker:
        """What draws the children of nodes at a level."""
        return self.config.law_of_level(level)

    def law(
        self,
        logits: Array,
        level: int,
        num_drafts: int,
        tokens: Array | None = None,
        paths: Array | None = None,
    ):
        """The laws [B, W] of `num_drafts` children, see `base.DraftPolicy`."""
        logits = self._asked(logits, tokens, paths)
        make, options = self.maker(level), self.options.of_drafts()
        width = logits.shape[-1]
        size = min(self.config.draft_top_k, width, options.max_support or width)
        size = max(size, num_drafts)
        # Any law will do that is a law: what is drawn from it is what is verified.
        logits = mended(logits, broken_rows(logits))
        if size < width:
            few, found = nearly_largest(logits, size)
            tokens = found if tokens is None else tokens[found]
            probs = options.of_likeliest(few, logits)
        else:
            if tokens is not None:
                tokens = jnp.broadcast_to(tokens, logits.shape)
            probs = options.to_probabilities(logits)
        laws = _of_each(make, num_drafts, probs)
        if tokens is None:
            return laws

        def rename(law, tokens: Array):
            return law.renamed(tokens, self.vocab_size)

        return jax.vmap(jax.vmap(rename))(laws, tokens)

    def _asked(self, logits: Array, tokens: Array | None, paths: Array | None) -> Array:
        """Logits after bias and penalties, which speak of all the vocabulary."""
        if not self.options.changes_logits:
            return logits
        if paths is None:
            paths = jnp.full((*logits.shape[:2], 0), NO_TOKEN)
        rest = paths, self.options, self.counts, self.ends
        if tokens is None:
            return adjusted(logits, *rest)
        shape = (*logits.shape[:-1], self.vocab_size)
        every = jnp.full(shape, -jnp.inf, logits.dtype).at[..., tokens].set(logits)
        return adjusted(every, *rest)[..., tokens]


def _of_each(make: LawMaker, num_drafts: int, probs: Array):
    """The laws [B, W] on rows `probs [B, W, k]`."""
    return jax.vmap(jax.vmap(lambda q: make(q, num_drafts)))(probs)
