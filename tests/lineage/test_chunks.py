from __future__ import annotations

import zlib
from itertools import accumulate
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineage.chunks import _HEAD, Chunk, ChunkBuilder, head_of
from lineage.columns import MOST_GROUP_BYTES, BrokenChunk
from lineage.outcomes import Setting
from tests.lineage.outcomes import DIGIT, RUN, add, chunk, trace

SETTINGS = [
    DIGIT,
    Setting("digits", error="Overloaded", deadline_ms=20.0, max_cost=0.5, min_accuracy=0.9, priority=0),
    Setting(
        "sort",
        plan="p",
        steps=((3, "a@1"),),
        tags=frozenset({"pii", "eu"}),
        purpose='say "hi"',
        flags=frozenset({"cached"}),
        considered=(("p", 0.9), ("q", 0.1)),
        chosen="q",
    ),
]
NUMBER = st.floats(0, 1e6, width=32)


@st.composite
def groups(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Groups with distinct numbers, in any order, and outputs and inputs of all kinds."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    in_a_row = draw(st.booleans())
    seqs = draw(st.permutations(range(0, 2 * sum(sizes), 2)))
    found = []
    for begin, n in zip(accumulate([0, *sizes[:-1]]), sizes, strict=True):
        setting = draw(st.sampled_from(SETTINGS))
        n_rows = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        rows = sum(n_rows)
        able = {
            "label": rng.integers(0, 9, rows),
            "scores": rng.random((rows, 4)).astype(">f4"),
            "many": rng.random((rows, 80)),
            "grid": rng.integers(0, 200, (rows, 2, 3)).astype(np.uint8),
            "yes": rng.random(rows) < 0.5,
            "text": np.array([[b"x" * int(rng.integers(0, 300)), "é"] for _ in range(rows)], object).reshape(rows, 2),
            "huge": rng.integers(0, 9, (rows, 100)),
        }
        outputs = {name: able[name] for name in draw(st.lists(st.sampled_from(sorted(able)), unique=True))}
        found.append(
            {
                "setting": setting,
                "seqs": 100 + begin if in_a_row else [100 + seq for seq in seqs[begin : begin + n]],
                "at_s": draw(st.floats(1e9, 2e9)),
                "latencies_ms": draw(st.lists(NUMBER, min_size=n, max_size=n)),
                "n_rows": n_rows,
                "confidences": draw(st.lists(st.floats(0, 1, width=32) | st.just(nan), min_size=n, max_size=n)),
                "steps": [(*draw(st.tuples(NUMBER, NUMBER, NUMBER)), draw(st.integers(0, 99))) for _ in setting.steps],
                "outputs": outputs,
                "inputs": draw(st.sampled_from([None, {"huge": able["huge"], "label": able["label"]}, {}])),
            }
        )
    return found


def check_rows(kept: Any, given_: dict[str, Any], start: int, stop: int) -> None:
    assert kept.names == set(given_)
    for name, values in given_.items():
        rows = values[start:stop]
        if name == "huge":
            assert (name in kept.left_out) if name not in kept.full else (kept.full[name] == rows).all()
        elif name == "many" and name in kept.best:
            assert kept.best[name].tolist() == rows.argmax(axis=1).tolist()
        elif name == "text":
            for found, row in zip(kept.full[name].tolist(), rows.tolist(), strict=True):
                fits = len(row[0]) + 2 <= 256
                assert found == ([row[0], "é".encode()] if fits else [None, None])
        else:
            assert kept.full[name].dtype == rows.dtype.newbyteorder("<")
            assert np.array_equal(kept.full[name], rows)


def check_numbers(decoded: Chunk, added: list[dict[str, Any]]) -> None:
    numbers = decoded.numbers()
    assert numbers.sizes.tolist() == [len(group["latencies_ms"]) for group in added]
    assert numbers.at_s.tolist() == [group["at_s"] for group in added]
    assert numbers.latencies_ms.tolist() == [one for group in added for one in group["latencies_ms"]]
    assert numbers.n_rows.tolist() == [one for group in added for one in group["n_rows"]]
    assert len(numbers.confidences) == decoded.head.n_requests
    assert numbers.seqs.tolist() == [seq for group in decoded.groups() for seq in group.seqs.tolist()]
    for group, which, first in zip(added, numbers.which.tolist(), numbers.first_step.tolist(), strict=True):
        assert decoded.settings[which] == group["setting"]
        for k, (_, _, took_ms, batch_rows) in enumerate(group["steps"], first):
            assert (numbers.took_ms[k], numbers.batch_rows[k]) == (took_ms, batch_rows)


@given(groups())
@settings(max_examples=60)
def test_what_was_added_comes_back_group_by_group_and_request_by_request(added: list[dict[str, Any]]) -> None:
    builder = ChunkBuilder(RUN)
    for group in added:
        builder.add(**group)
    data = builder.encode()
    decoded = Chunk.decode(data)
    assert head_of(data) == decoded.head
    head = decoded.head
    assert (head.run, head.n_requests) == (RUN, sum(len(group["latencies_ms"]) for group in added))
    assert (head.from_s, head.to_s) == (min(g["at_s"] for g in added), max(g["at_s"] for g in added))
    seen = []
    for group, found in zip(added, decoded.groups(), strict=True):
        n = len(group["latencies_ms"])
        seqs = list(range(group["seqs"], group["seqs"] + n)) if type(group["seqs"]) is int else group["seqs"]
        seen += seqs
        assert found.setting == group["setting"]
        assert (found.at_s, found.seqs.tolist(), found.n_rows.tolist()) == (group["at_s"], seqs, group["n_rows"])
        assert found.latencies_ms.tolist() == group["latencies_ms"]
        assert np.array_equal(found.confidences, np.array(group["confidences"], np.float32), equal_nan=True)
        assert [(s.waited_ms, s.ran_ms, s.took_ms, s.batch_rows) for s in found.steps] == group["steps"]
        assert tuple((s.step, s.extension) for s in found.steps) == group["setting"].steps
        rows = sum(group["n_rows"])
        check_rows(found.outputs, group["outputs"], 0, rows)
        assert (found.inputs is None) == (group["inputs"] is None)
        for k, seq in enumerate(seqs):
            start = sum(group["n_rows"][:k])
            one = decoded.find(seq)
            assert one is not None
            assert (one.trace_id, one.setting, one.at_s) == (trace(seq), group["setting"], group["at_s"])
            assert (one.latency_ms, one.n_rows) == (group["latencies_ms"][k], group["n_rows"][k])
            sure = group["confidences"][k]
            assert one.confidence is None if isnan(sure) else one.confidence == sure
            check_rows(one.outputs, group["outputs"], start, start + one.n_rows)
            if one.inputs is not None:
                check_rows(one.inputs, group["inputs"], start, start + one.n_rows)
    check_numbers(decoded, added)
    assert (head.first_seq, head.last_seq) == (min(seen), max(seen))
    assert all(decoded.find(seq) is None for seq in range(90, 160) if seq not in seen)


@given(st.data())
def test_bytes_that_were_changed_cut_or_made_longer_are_refused(data: st.DataObject) -> None:
    whole = chunk(5, [1, 2, 3])
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(1, 255))
    for bad in (whole[:at], whole + bytes([other]), whole[:at] + bytes([whole[at] ^ other]) + whole[at + 1 :]):
        for look in (head_of, Chunk.decode):
            with pytest.raises(BrokenChunk):
                look(bad)


def sealed(whole: bytes, change: tuple[int, int] = (0, 0), **says: int) -> bytes:
    """The chunk with another head, or with a byte of its body changed, and a right checksum."""
    magic, run, first, last, from_s, to_s, n, n_header, n_tight, n_packed, n_loose, _ = _HEAD.unpack_from(whole)
    body = bytearray(zlib.decompress(whole[_HEAD.size :][:n_packed]) + whole[_HEAD.size + n_packed :])
    body[change[0] % len(body)] ^= change[1]
    packed = zlib.compress(body[:n_tight], 1)
    said = {"first": first, "last": last, "n": n, "header": n_header, "tight": n_tight, "loose": n_loose, **says}
    sizes = said["header"], said["tight"], len(packed), said["loose"]
    empty = _HEAD.pack(magic, run, said["first"], said["last"], from_s, to_s, said["n"], *sizes, 0)
    body = packed + body[n_tight:]
    return empty[:-4] + zlib.crc32(body, zlib.crc32(empty)).to_bytes(4, "little") + body


@given(st.data())
def test_a_chunk_that_does_not_fit_together_is_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    whole = chunk(5, [1, 2, 3])
    assert Chunk.decode(sealed(whole)).find(6) is not None
    changed = sealed(whole, data.draw(st.tuples(st.integers(0, 10_000), st.integers(1, 255))))
    try:
        for group in Chunk.decode(changed).groups():
            assert len(group.seqs) == len(group.latencies_ms)
    except BrokenChunk:
        pass


@pytest.mark.parametrize(
    "changes",
    [
        *({"header": size} for size in (10, 1 << 31)),
        *({"tight": size} for size in (10, 1 << 27, 1 << 30)),
        *({"n": n} for n in (2, 1 << 31)),
        *({"loose": 10}, {"first": 4}, {"last": 9}),
    ],
)
def test_a_head_that_says_something_else_than_the_chunk_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BrokenChunk):
        Chunk.decode(sealed(chunk(5, [1, 2, 3]), **changes))


def test_settings_that_are_equal_are_stored_once() -> None:
    builder = ChunkBuilder(RUN)
    for seq in range(5):
        add(builder, seq, [1], setting=Setting("m", user="ann"))
    assert Chunk.decode(builder.encode()).settings == (Setting("m", user="ann"),)


def test_what_was_handed_in_may_be_changed_afterwards() -> None:
    builder = ChunkBuilder(RUN)
    latencies, rows, sure, steps, seqs = [1.0, 2.0], [1, 1], [0.5, nan], [(0.0, 1.0, 2.0, 3)] * 2, [7, 5]
    labels = np.array([3, 4])
    for k in (0, 10):
        builder.add(DIGIT, [seq + k for seq in seqs], 1.0, latencies, rows, sure, steps, {"digit": labels})
    for changed in (latencies, rows, sure, steps):
        changed.clear()
    labels[:] = 0
    found = [Chunk.decode(builder.encode()).find(seq) for seq in (7, 5, 17, 15)]
    assert [one and (one.latency_ms, one.outputs.full["digit"].tolist()) for one in found] == 2 * [
        (1.0, [3]),
        (2.0, [4]),
    ]


def test_an_output_that_changes_its_form_comes_back_in_each() -> None:
    builder = ChunkBuilder(RUN)
    forms = [np.array([1]), np.array([2.5], np.float32), np.array([[1, 2]]), np.array([3]), np.zeros((1, 65))]
    for seq, values in enumerate([*forms, *forms]):
        add(builder, seq, [1], outputs={"digit": values})
    decoded = Chunk.decode(builder.encode())
    for seq, values in enumerate([*forms, *forms]):
        found = decoded.find(seq)
        assert found is not None
        if seq % 5 == 4:
            assert found.outputs.best["digit"].tolist() == [0]
        else:
            assert (found.outputs.full["digit"].dtype, found.outputs.full["digit"].tolist()) == (
                values.dtype,
                values.tolist(),
            )


@pytest.mark.parametrize(
    "changes",
    [
        {"latencies_ms": ["x", 1.0]},
        {"confidences": [0.5, None]},
        {"n_rows": [1, 1.0]},
        {"seqs": [1, "x"]},
        {"seqs": 1 << 64},
        {"at_s": "now"},
        {"steps": [(1.0, 1.0, 1.0, 1), (1.0, 1.0, 1)]},
    ],
)
def test_a_group_of_something_else_than_numbers_is_refused_and_hurts_nobody_else(changes: dict[str, Any]) -> None:
    builder = ChunkBuilder(RUN)
    given_ = {
        "latencies_ms": [1.0, 2.0],
        "n_rows": [1, 1],
        "confidences": [nan, nan],
        "seqs": 4,
        "at_s": 1.0,
        "steps": [(1.0, 1.0, 1.0, 1)] * 2,
    }
    add(builder, 0, [1])
    with pytest.raises(ValueError, match="something else"):
        builder.add(DIGIT, **{**given_, **changes})
    add(builder, 1, [2])
    groups = list(Chunk.decode(builder.encode()).groups())
    assert [(group.seqs.tolist(), group.latencies_ms.tolist()) for group in groups] == [([0], [1.5]), ([1], [1.5])]
    assert [group.outputs.full["digit"].tolist() for group in groups] == [[1], [2]]


def test_what_is_too_much_to_keep_is_not_held_either() -> None:
    builder = ChunkBuilder(RUN)
    big = np.zeros((1, MOST_GROUP_BYTES + 1), np.uint8)
    builder.add(Setting("m"), 0, 1.0, [1.0], [1], [nan], (), {"mask": big}, {"x": big})
    assert builder.n_bytes == 0
    builder.add(Setting("m"), 1, 1.0, [1.0], [1], [nan], (), {"text": np.array([b"ab" * 50], object)})
    assert builder.n_bytes == 100
    builder.add(Setting("m"), 2, 1.0, [1.0], [1], [nan], (), {"scores": np.zeros((1, 1000), np.float32)})
    assert builder.n_bytes == 4100
    one = Chunk.decode(builder.encode()).find(0)
    assert one is not None
    assert one.inputs is not None
    assert one.outputs.left_out == {"mask"}
    assert one.inputs.left_out == {"x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"latencies_ms": []},
        {"latencies_ms": [1.0]},
        {"n_rows": [1]},
        {"confidences": [nan]},
        {"steps": [(0.0, 0.0, 0.0, 1)]},
        {"seqs": [1]},
        {"outputs": {"y": np.zeros(3)}},
        {"inputs": {"x": np.zeros(1)}},
    ],
)
def test_a_group_that_does_not_fit_together_is_refused_and_nothing_is_taken(changes: dict[str, Any]) -> None:
    builder = ChunkBuilder(RUN)
    given_ = {"latencies_ms": [1.0, 2.0], "n_rows": [1, 1], "confidences": [nan, nan], "seqs": 4, "at_s": 1.0}
    with pytest.raises(ValueError, match=r"request|rows"):
        builder.add(Setting("m"), **{**given_, **changes})
    assert (builder.n_requests, builder.n_bytes) == (0, 0)


@pytest.mark.parametrize("seqs", [[1, 1], [-1, 0], [0, 1 << 48]])
def test_numbers_that_are_not_distinct_numbers_of_48_bits_are_refused(seqs: list[int]) -> None:
    with pytest.raises(ValueError, match="48 bits"):
        chunk(seqs, [1, 2])


def test_an_empty_chunk_and_a_strange_run_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ChunkBuilder(RUN).encode()
    with pytest.raises(ValueError, match="not the name of a run"):
        ChunkBuilder("abc")
