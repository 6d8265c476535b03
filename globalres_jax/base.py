"""Array aliases, the values that pass between the rooms, and the contracts.

p is always the target's distribution, q the draft's. Every protocol here says all
that its callers use: what satisfies it works in `generate`, whoever wrote it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import jax

if TYPE_CHECKING:
    from globalres_jax.tree import TokenTree

Array = jax.Array
Params = Any  # any pytree of arrays
State = Any  # any pytree of arrays

#: Marks a draft slot that holds no token (a path that no longer matches the text).
NO_TOKEN = -1


class Cache(Protocol):
    """What the library needs of a model's cache, a pytree with one length per row.

    A row holds `length` committed tokens, one a slot; a model appends behind them.
    Slots past the length are never looked at, so that setting the length back
    forgets them.

    Attributes:
      length: [B] int32, committed tokens of each row.
      capacity: number of slots S of a row.
    """

    length: Array

    @property
    def capacity(self) -> int: ...

    def with_length(self, length: Array) -> Self:
        """The same slots, of which the first `length [B]` hold text."""
        ...

    def keep_path(self, base: Array, nodes: Array, count: Array) -> Self:
        """A token tree becomes text: its root and the path below that was accepted.

        Args:
          base: [B] slot of the tree's root; node v lies in slot `base + v`.
          nodes: [B, D] the path's node at each depth from 1 on.
          count: [B] tokens to keep, the root included; 0 keeps nothing. Entries of
            `nodes` from `count - 1` on are any valid nodes.

        Returns:
          The cache with `nodes[:, d]` in slot `base + 1 + d` and length `base + count`.
        """
        ...


class ModelFn(Protocol):
    """A language model as a pure function.

    `tokens [B, L]` are appended to the cache at slots `cache.length ...
    cache.length + L - 1`; `positions [B, L]` place them in the sequence (siblings
    in a token tree share a position); `mask [B, L, S]` says which of the `S` cache
    slots each token may attend to. Returns logits `[B, L, V]` (row `l` predicts
    the token after `tokens[:, l]`) and the cache with `length` advanced by `L`.

    It may have three attributes more. `vocabulary_first`: true if on a CPU the logits
    come from a product whose result lies in memory as [V, B, L]; they are then read
    so. `of_last`: the same function with logits `[B, 1, V]`, of the last token alone.
    `with_features`: the same function, which returns (logits, features `[B, L, F]`,
    cache), for drafters that read what the target made of each token.
    """

    def __call__(
        self, params: Params, tokens: Array, positions: Array, cache: Any, mask: Array
    ) -> tuple[Array, Any]: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model as `generate` takes it: a pure function, its parameters, its cache.

    A pytree whose only children are `params`, so it passes through `jax.jit`.

    Attributes:
      params: pytree of arrays.
      apply: the `ModelFn`.
      init_cache: `(batch, length) -> Cache` with room for `length` tokens a row.
      vocab_size: number of tokens the logits cover.
      tokenizer: object with `encode(text)` and `decode(ids)`, or None.
      eos_id: end-of-text token, or several, or None.
      context_length: most tokens of a text that the model was made for; None if that
        is not known. `generate` refuses requests beyond the target's.
    """

    params: Params
    apply: ModelFn = dataclasses.field(metadata={"static": True})
    init_cache: Callable[[int, int], Cache] = dataclasses.field(
        metadata={"static": True}
    )
    vocab_size: int = dataclasses.field(metadata={"static": True})
    tokenizer: Any = dataclasses.field(default=None, metadata={"static": True})
    eos_id: int | tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    context_length: int | None = dataclasses.field(
        default=None, metadata={"static": True}
    )


class DraftLaw(Protocol):
    """The joint law of the tokens drafted at one position: a pytree of arrays.

    A law holds the k tokens that it can draw, and speaks of those alone: `take` brings
    a row over the vocabulary to them, `spread` brings one back. `draft_laws.law` has a
    base class with what the transport solve asks beyond this.

    Attributes:
      num_drafts: n, a Python int where it fixes shapes, else an integer array.
      vocab_size: V.
      tokens: [k] int32, different tokens; None if the law is on all V in their order.
      joins: whether drafts of several nodes with one and the same text before them
        are together a sample of this law (independent draws); if not, only those of
        one node are.
    """

    num_drafts: int | Array
    joins: bool

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokens(self) -> Array | None: ...

    def take(self, row: Array) -> Array:
        """[V] to [k]: the entries of the law's tokens."""
        ...

    def spread(self, values: Array) -> Array:
        """[k] to [V]: zero for tokens that the law cannot draw."""
        ...

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [n] int32 tokens of the vocabulary."""
        ...

    def draw(self, numbers: Array) -> Array:
        """`sample` from uniform `numbers [n, UNIFORMS]`, see `numerics.categorical`."""
        ...

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        ...

    def joined(self, num_drafts: Array, most: int) -> DraftLaw:
        """The law of another number of drafts, at most `most` (where it `joins`)."""
        ...

    def renamed(self, tokens: Array, vocab_size: int) -> DraftLaw:
        """The same over another vocabulary, where token i is called `tokens[i]`."""
        ...


class Decision(NamedTuple):
    """The conditional law of the emitted token, given the drafts.

    Our rules' decisions are differentiable in reverse mode in p and in the law. Where a
    minimum or maximum ties, as min(1, p / q) does at p = q, the derivative is the mean
    of both sides', so that the sum keeps still; what sorting, ranking and bounds decide
    is constant.

    Attributes:
      accept: [n] probability of emitting draft j.
      residual: [V] sub-distribution of the token emitted when no draft is accepted;
        `sum(accept) + sum(residual) = 1`.
    """

    accept: Array
    residual: Array


class Verifier(Protocol):
    """A single-position rule: a conditional distribution pi(y | drafts).

    `prepare` does what does not depend on the drafted tokens (for the optimal rule,
    the transport solve); `resolve` turns a plan and drafts into a `Decision`; `decide`
    is both. In a token tree `law.num_drafts` may be data, and slots that are not in
    use hold `NO_TOKEN`. Hashable, and equal when alike.

    A rule may have one method more, `optimum(plan) -> []`: the optimal acceptance rate
    (or an upper bound of it) that its plan knows of. Metrics then count it.
    """

    def check(self, law: Any) -> None:
        """Raises TypeError or ValueError if the rule is not lossless for the law."""
        ...

    def prepare(self, p: Array, law: Any) -> Any: ...

    def resolve(
        self, plan: Any, p: Array, law: Any, draft_tokens: Array
    ) -> Decision: ...

    def decide(self, p: Array, law: Any, draft_tokens: Array) -> Decision: ...


class TreeDecision(NamedTuple):
    """The law of what a step emits, given a drafted tree.

    Attributes:
      stop: [N] probability that the walk ends at each node: the path to it is emitted,
        and one token more; sums to 1.
      next: [N, V] law of that token at each node, where `stop` is above zero.
    """

    stop: Array
    next: Array


class Walk(NamedTuple):
    """One outcome of a `TreeDecision`.

    Attributes:
      nodes: [D] node of each accepted token, by depth from 1 on; 0 beyond.
      accept_length: [] number of accepted tokens.
      next_token: [] the token emitted after them.
      optimum: [D] the optimal acceptance rate at each node visited, by depth, 0
        elsewhere; None from a rule that does not know it.
      expected: [] the mean of `accept_length`, given the drafted tree; likewise.
    """

    nodes: Array
    accept_length: Array
    next_token: Array
    optimum: Array | None = None
    expected: Array | None = None


class TargetRows(Protocol):
    """Rows of p, [N, V], as an array has them: `rows[node]` is [V].

    An array is one. Another computes each row from logits when it is read, so that on a
    CPU rows that nobody looks at cost nothing; `rows[nodes]` is then [M, V], and there
    are no other ways to index it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, node: Any) -> Array: ...


class TreeVerifier(Protocol):
    """A rule for a whole token tree: which path is emitted, and the token after it.

    Both methods are for one row. `laws` has one entry for each of `tree.groups`, the
    laws of its nodes stacked along a leading axis. Hashable, and equal when alike.

    A rule may have an attribute more, `reads_rows`: if it is true, `walk` gets the rows
    of p as `TargetRows` and not as an array, and should read those that it needs.
    """

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """Raises TypeError or ValueError if the rule does not serve these laws."""
        ...

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """The exact law, for enumeration: tokens [N], p [N, V]."""
        ...

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> Walk:
        """A draw of that law, without forming [N, V]."""
        ...


class Emitted(NamedTuple):
    """The tokens that one step adds to the text of each row.

    Attributes:
      tokens: [B, D + 1] of which the first `count` are emitted.
      count: [B] from 0 (a row that has ended) to D + 1.
      node: [B, D + 1] the tree node after which each token stands: token i was
        verified against row `node[:, i]` of p.
      from_draft: [B, D + 1] whether it had been drafted.
      features: [B, D + 1, F] what the target made of the token before each, 0 from
        `count` on; None for a drafter that does not read them.
    """

    tokens: Array
    count: Array
    node: Array
    from_draft: Array
    features: Array | None = None


class DraftPolicy(Protocol):
    """How a drafter that has logits is to draw from them, by the request's options.

    Attributes:
      vocab_size: V of the target.
      reads_paths: whether options depend on the tokens down to a node, as penalties do.
        A drafter that then says nothing of them is as exact, and fits less well.
    """

    vocab_size: int

    @property
    def reads_paths(self) -> bool: ...

    def maker(self, level: int) -> Hashable:
        """What draws the children of nodes at a level: alike where it is equal."""
        ...

    def law(
        self,
        logits: Array,
        level: int,
        num_drafts: int,
        tokens: Array | None = None,
        paths: Array | None = None,
    ) -> DraftLaw:
        """The law of `num_drafts` children of nodes at a level of the tree.

        Args:
          logits: [B, W, V], for W nodes of each row; [B, W, K] with `tokens`.
          level: depth of these nodes.
          num_drafts: children of each.
          tokens: [K] the different tokens that the logits are of; None for all V.
          paths: [B, W, L] tokens below the root down to each node, -1 for none, where
            `reads_paths`.

        Returns:
          The laws, stacked along the leading axes [B, W].
        """
        ...


class Proposal(NamedTuple):
    """A drafted tree.

    Attributes:
      tokens: [B, N] token at each node; node 0 holds the last emitted one.
      laws: for each of `tree.groups`, the laws of its W nodes, stacked [B, W]: what
        their children were drawn from, exactly.
      drafted: [B] bool, whether a row's drafts are worth a look, as far as the text
        before them says; None for all. Rows without such drafts get their next token as
        plain decoding has it, and a step where no row has any is a plain one.
    """

    tokens: Array
    laws: tuple
    drafted: Array | None = None


class Drafter(Protocol):
    """A source of drafts. It owns its state: a cache, a history, a connection.

    The state always stands for the text of each row less its last token, which is the
    root of the next tree. Drafters are pytrees: their arrays may pass through `jit`.

    A drafter may have an attribute more, `reads_features`: if it is true, `start` gets
    a fourth argument, the target's features [B, P, F] of all but the last token of each
    prompt, and `commit` gets those of what was emitted. The target must then have
    `with_features`.
    """

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """Raises ValueError if it cannot draft such a tree for such a target."""
        ...

    def start(self, prompts: Array, lengths: Array, capacity: int) -> State:
        """The state after `prompts [B, P]` of `lengths [B]`; it grows to `capacity`.

        Beyond its length a prompt is padded with anything.
        """
        ...

    def propose(
        self, keys: Array, state: State, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, State]:
        """Draws a tree below the last token of each row, from one key a row [B]."""
        ...

    def commit(self, state: State, emitted: Emitted) -> State:
        """The state after the text has grown; rows with `count` 0 stay as they are."""
        ...
