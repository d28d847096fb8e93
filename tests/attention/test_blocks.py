"""Visibility against the rules of the memory policy, told token by token in plain Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.row_layout import FOREVER, BlockKind, Role
from pixr1_jax.attention.blocks import Blocks, MemoryPolicy, block_lists, visible

BLOCK = 3
_visible = jax.jit(visible, static_argnums=2)
_block_lists = jax.jit(block_lists, static_argnames=("block", "max_keys", "tile"))


@dataclasses.dataclass(frozen=True)
class Token:
    block: int
    real: bool
    segment: int
    chunk: int
    role: int
    kind: int
    until: int
    no_text: bool


def sees(query: Token, key: Token, policy: MemoryPolicy) -> bool:
    """The rules as the design tells them, one by one."""
    if not query.real or not key.real:
        return False  # padding reads nothing and is not read
    if query.segment < 0 or query.segment != key.segment:
        return False  # packed clips do not know of one another
    if query.kind == BlockKind.TEXT:
        return key.kind == BlockKind.TEXT and key.chunk == query.chunk  # a text reads itself only
    if key.kind == BlockKind.TEXT:
        return key.chunk <= query.chunk < key.until and not query.no_text  # the text in force
    if key.chunk > query.chunk:
        return False  # the future
    if key.chunk == query.chunk:
        return key.role == query.role  # clean i sees clean i; noisy i sees itself, never its own answer
    if key.role == Role.NOISY:
        return False  # the past is clean
    if query.chunk - key.chunk <= policy.window or key.chunk < policy.sinks:
        return True
    return key.kind == BlockKind.MEMORY


@st.composite
def block_rows(draw):
    count = 9  # one shape, compiled once
    small = lambda low, high: st.lists(st.integers(low, high), min_size=count, max_size=count)
    rows = {
        "segment": draw(small(-1, 1)),
        "chunk": draw(small(0, 6)),
        "role": draw(small(0, 1)),
        "kind": draw(small(0, 3)),
        "valid": draw(small(0, BLOCK)),
        "until": [FOREVER if x > 7 else x for x in draw(small(1, 9))],
    }
    # Texts are clean by construction.
    rows["role"] = [
        int(Role.CLEAN) if k == BlockKind.TEXT else r for k, r in zip(rows["kind"], rows["role"], strict=True)
    ]
    return rows, draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))


@settings(deadline=None, max_examples=100)
@given(block_rows(), block_rows(), st.integers(1, 3), st.integers(0, 2))
def test_visible_is_the_rules_token_by_token(query_row, key_row, window, sinks):
    policy = MemoryPolicy(window=window, sinks=sinks, bank=1, horizon=10)
    (queries, hidden), (keys, _) = query_row, key_row

    def tokens(row, no_text):
        for b in range(len(row["valid"])):
            values = {name: row[name][b] for name in ("segment", "chunk", "role", "kind", "until")}
            for i in range(BLOCK):
                yield Token(block=b, real=i < row["valid"][b], no_text=bool(no_text and no_text[b]), **values)

    expected = np.zeros((len(queries["valid"]), len(keys["valid"])), bool)
    for q in tokens(queries, hidden):
        for k in tokens(keys, None):
            expected[q.block, k.block] |= sees(q, k, policy)
    as_blocks = lambda row: Blocks(**{name: jnp.asarray(values, jnp.int32) for name, values in row.items()})
    seen = _visible(as_blocks(queries), as_blocks(keys), policy, None if hidden is None else jnp.asarray(hidden))
    np.testing.assert_array_equal(seen, expected)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1, 1), (4, 9), (7, 5)]),
    st.sampled_from([None, 1, 5, 12]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
def test_block_lists_name_what_each_tile_sees(shape, max_keys, tile, seed, density):
    """Entry by entry in plain Python: the union of a tile, unmasked entries first, who reads each."""
    queries, keys = shape
    rng = np.random.default_rng(seed)
    seen = rng.random((2, queries, keys)) < density
    valid = rng.choice([BLOCK, BLOCK, 1], (2, keys)).astype(np.int32)
    lists = _block_lists(jnp.asarray(seen), jnp.asarray(valid), block=BLOCK, max_keys=max_keys, tile=tile)
    bound = keys if max_keys is None else min(tile * max_keys, keys)
    tiles = -(-queries // tile)
    assert lists.indices.shape == lists.seen.shape == (2, 1, tiles, bound)
    for b, t in np.ndindex(2, tiles):
        readers = {k: [i for i, q in enumerate(seen[b, t * tile : (t + 1) * tile]) if q[k]] for k in range(keys)}
        everyone = list(range(min(tile, queries - t * tile)))
        whole = [k for k in range(keys) if readers[k] == everyone and valid[b, k] == BLOCK]
        masked = [k for k in range(keys) if readers[k] and k not in whole]
        expected = (whole + masked)[:bound]
        assert lists.counts[b, 0, t] == len(expected)
        assert lists.whole[b, 0, t] == min(len(whole), bound)
        np.testing.assert_array_equal(lists.indices[b, 0, t], expected + [0] * (bound - len(expected)))
        by_bits = [[i for i in range(tile) if bits >> i & 1] for bits in np.asarray(lists.seen[b, 0, t])]
        assert by_bits == [readers[k] for k in expected] + [[]] * (bound - len(expected))


def test_blocks_of_a_packed_row_slice_and_join(tiny):
    packed, room = tiny.batch(tiny.token_spec(), [[tiny.window(tiny.token_spec(), 3)]], spare=1)
    blocks = Blocks.of(packed)
    assert blocks.count == room.blocks
    first, rest = blocks[: room.clean_blocks], blocks[room.clean_blocks :]
    assert set(np.unique(first.role)) == {Role.CLEAN} and first.count + rest.count == blocks.count
    joined = first + rest
    for field in dataclasses.fields(Blocks):
        np.testing.assert_array_equal(getattr(joined, field.name), packed[f"block_{field.name}"])


def test_a_packed_row_by_hand(tiny):
    """Four chunks, window 1, one sink: the noisy block of chunk 3 and the clean block of chunk 2."""
    spec = tiny.token_spec()
    window = tiny.window(spec, 4, events=((0, "a"), (4, "bcdef")))
    packed, _ = tiny.batch(spec, [[window]])
    blocks = Blocks.of({name: value[0] for name, value in packed.items()})
    seen = np.asarray(visible(blocks, blocks, tiny.policy(window=1, sinks=1)))
    label = [
        f"{'cn'[int(r)]}{int(c)}{'thmp'[int(k)]}"
        for r, c, k in zip(blocks.role, blocks.chunk, blocks.kind, strict=True)
    ]
    named = lambda which: [label[i] for i in np.flatnonzero(seen[label.index(which)])]
    chunk = lambda r, i: [f"{r}{i}h", *([f"{r}{i}m"] if r == "c" else []), f"{r}{i}p", f"{r}{i}p"]
    text = ["c2t", "c2t"]  # five bytes take two blocks
    assert named("n3h") == [*chunk("c", 0), "c1m", *text, *chunk("c", 2), *chunk("n", 3)]
    assert named("c2m") == [*chunk("c", 0), *chunk("c", 1), *text, *chunk("c", 2)]
    assert named("n1p") == ["c0t", *chunk("c", 0), *chunk("n", 1)]
    assert named("c2t") == text and named("c0t") == ["c0t"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "window >= 1"),
        ({"sinks": -1}, "sinks >= 0"),
        ({"bank": 0}, "bank >= 1"),
        ({"horizon": 2}, "memory.horizon=2 must exceed memory.window=2"),
    ],
)
def test_policies_that_cannot_be(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny.policy(**fields)
