"""Requests on their way to a row: read, checked, brought to shapes that come back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from globalres_jax.base import Drafter, Model
from globalres_jax.decoding.buckets import bucket, bucket_sizes
from globalres_jax.decoding.config import AUTO, SpeculativeConfig
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import Program, as_program, plan
from globalres_jax.serving.requests import Completion, GenerationRequest
from globalres_jax.serving.rows import kind_of
from globalres_jax.validation import wrong_kind

#: Room for end tokens of a row: more than most models have, so that few are of another
#: shape.
_ENDS = 4


class Admitted(NamedTuple):
    """A request that may have a row.

    Attributes:
      index: of the request, in the order in which they came.
      request: itself.
      tokens: [P] of its prompt.
      program: what to run, with one row.
      kind: requests of one kind may share a batch.
    """

    index: int
    request: GenerationRequest
    tokens: np.ndarray
    program: Program
    kind: tuple


class Pair(NamedTuple):
    """What all requests have in common.

    Attributes:
      target: the model whose distribution the texts have.
      draft: its drafter, or None.
      config: with a tree and a `cache_length`.
    """

    target: Model
    draft: Model | Drafter | None
    config: SpeculativeConfig

    def admit(self, index: int, request: GenerationRequest) -> Admitted | Completion:
        """A request as a program; a `Completion` with an error for one that is none.

        All of its shapes but its prompt's are the same for all requests with such
        options, so that nothing depends on which others there are.
        """
        try:
            tokens = self.tokens(request)
            config, options = self.config, _options(request, self.config)
            program = as_program(
                request.row_key[None],
                self.target,
                self.draft,
                tokens[None],
                np.asarray([len(tokens)]),
                config,
                request.max_new_tokens,
                _ends(request, self.target),
                options,
                request.stop,
                request.include_stop,
            )
        except (ValueError, TypeError) as error:
            nothing = np.zeros(0, np.int32)
            return Completion(index, request, nothing, None, None, str(error))
        static = {**program.static, "room": config.cache_length}
        program = program._replace(static=static)
        return Admitted(index, request, tokens, program, kind_of(program))

    def tokens(self, request: GenerationRequest) -> np.ndarray:
        """[P] of a request's prompt; ValueError or TypeError for one that has none."""
        prompt, tokenizer = request.prompt, self.target.tokenizer
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError("prompt: is a text, and the target has no tokenizer")
            prompt = tokenizer.encode(prompt)
        tokens = np.asarray(prompt)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise wrong_kind("prompt", "a text or its tokens [P]", request.prompt)
        if not tokens.size:
            raise ValueError("prompt: empty; a prompt has at least one token")
        return tokens

    def needed(self, request: GenerationRequest) -> int:
        """Slots of a cache for a request; 0 for one that will be refused."""
        try:
            width, room = len(self.tokens(request)), int(request.max_new_tokens)
            most = self.target.context_length
            if room < 1 or (most is not None and width + room > most):
                return 0
            free = dataclasses.replace(self.config, cache_length=None)
            return bucket_sizes(free, width, room).capacity
        except (ValueError, TypeError, OverflowError):
            return 0


def settle(
    target: Model,
    draft: Model | Drafter | None,
    requests: Iterable[Any],
    config: SpeculativeConfig,
    batch: int,
) -> Pair:
    """Chooses what all requests share and nobody gave: a tree, a cache's length.

    Raises:
      ValueError: it is to be chosen, and the requests cannot be looked at beforehand.
    """
    seen = requests if isinstance(requests, Sequence) else None
    if seen is None and (config.tree == AUTO or config.cache_length is None):
        missing = 'tree: "auto"' if config.tree == AUTO else "cache_length: None"
        raise ValueError(
            f"{missing} is chosen by looking at all requests beforehand, and these "
            "come one by one; give a list of them, or a config that says it"
        )
    if config.tree == AUTO and draft is not None:
        config = _planned(target, draft, seen, config, batch)
    if draft is None:
        config = config.plain()
    pair = Pair(target, draft, config)
    if config.cache_length is None:
        asked = filter(lambda x: isinstance(x, GenerationRequest), seen)
        needed = max(map(pair.needed, asked), default=0)
        length = needed or bucket_sizes(config, 1, 1).capacity
        pair = pair._replace(config=dataclasses.replace(config, cache_length=length))
    return pair


def _planned(target, draft, requests, config, batch) -> SpeculativeConfig:
    """The tree that pays for as many of the first requests as there are rows."""
    pair = Pair(target, draft, dataclasses.replace(config, tree=None))
    first = (x for x in requests if pair.needed(x))
    first = list(itertools.islice(first, batch))
    if not first:
        return pair.config
    rows = [pair.tokens(request) for request in first]
    lengths = np.asarray([len(row) for row in rows])
    width = bucket(int(lengths.max()))
    prompts = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    caps = [request.max_new_tokens for request in first]
    return plan(target, draft, prompts, lengths, config, caps).config


def _options(request: GenerationRequest, config: SpeculativeConfig) -> SamplingOptions:
    """A request's options, with a cap of `top_k` that others have, too."""
    options = config.sampling if request.options is None else request.options
    most = options.max_top_k
    if most is None:
        return options
    return dataclasses.replace(options, max_top_k=1 << (most - 1).bit_length())


def _ends(request: GenerationRequest, target: Model) -> np.ndarray:
    """[1, E] end tokens, filled up with -1."""
    given = target.eos_id if request.eos_id is None else request.eos_id
    ends = np.atleast_1d(np.asarray(() if given is None else given))
    if ends.ndim > 1 or (ends.size and ends.dtype.kind not in "iu"):
        raise wrong_kind("eos_id", "a token, or several", given)
    size = max(_ENDS, 1 << max(ends.size - 1, 0).bit_length())
    filled = np.full((1, size), -1, np.int64)
    filled[0, : ends.size] = ends
    return filled
