"""Is drift seen where it is, and only there? Run with `python -m tests.benchmarks.bench_drift [PART...]`.

false_alarms  windows without drift, in which share of them something is called drifted
power         small changes of known kinds, which statistics see them
detection     streams with known changes: delay, missed and false alarms, beside the detectors of river and a dummy
cost          microseconds per row, bytes per sketch

Streams: digits under corruptions that come and go; and, where the folder given by `--data` (or ../shared/data) has
them, insects whose features are permuted for a third of the time, and postures of which another person's take over.
"""

from __future__ import annotations

import argparse
import random
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.drift import Gatherer, Reference, Rows, Sketch, layout_of, learn
from lineage.drift.judge import Judge
from lineage.drift.thresholds import DriftSettings
from tests.benchmarks.bench_choice import table
from tests.benchmarks.digits import corrupted

Array = npt.NDArray[Any]
Draw = Callable[[np.random.Generator, int, int], Array]

DATA = Path(__file__).parents[2].parent / "shared" / "data"
PARTS = ("false_alarms", "power", "detection", "cost")


def independent(rng: np.random.Generator, n: int, d: int) -> Array:
    return rng.standard_normal((n, d), dtype=np.float32)


def correlated(rng: np.random.Generator, n: int, d: int) -> Array:
    common = rng.standard_normal((n, 1), dtype=np.float32)
    return np.float32(0.95) * common + np.float32(0.31) * rng.standard_normal((n, d), dtype=np.float32)


def mixed(rng: np.random.Generator, n: int, d: int) -> Array:
    """Cauchy, counts, mostly zeros and normal in turn, with a common factor."""
    base = rng.standard_normal((n, d), dtype=np.float32) + rng.standard_normal((n, 1), dtype=np.float32)
    made = base.copy()
    made[:, 0::4] = np.tan(np.clip(base[:, 0::4], -3.0, 3.0) / 2.0)
    made[:, 1::4] = np.floor(np.exp(base[:, 1::4]))
    made[:, 2::4] = np.where(base[:, 2::4] > 1.5, base[:, 2::4], 0.0)
    return made


KINDS: dict[str, Draw] = {"independent": independent, "correlated": correlated, "mixed": mixed}


def reference_of(values: Array, seed: int, *, with_joint: bool = True) -> Reference:
    layout = layout_of({"x": values})
    return learn(layout, layout.rows({"x": values}), np.random.default_rng(seed), with_joint=with_joint)


def window_of(empty: Sketch, values: Array) -> Sketch:
    sketch = empty.empty()
    sketch.add(Rows(values))
    return sketch


def false_alarms(options: argparse.Namespace, markdown: bool) -> None:
    print(
        f"Share of {options.windows:,} windows without drift that are called drifted, in %, nominal 1 %;"
        f" {options.training:,} training rows in each of {options.references} references\n"
    )
    rows = []
    for n_rows in options.rows:
        for d in options.columns:
            cells = [f"{n_rows:,}", str(d)]
            for kind in options.kinds:
                n_alarms = 0
                for seed in range(options.references):
                    rng = np.random.default_rng((seed, n_rows, d))
                    reference = reference_of(KINDS[kind](rng, options.training, d), seed)
                    judge, empty = Judge(reference, DriftSettings(seed=seed)), Sketch(reference.bins)
                    for _ in range(options.windows // options.references):
                        values = KINDS[kind](rng, n_rows, d)
                        n_alarms += judge.level(window_of(empty, values)) <= 0.01
                cells.append(f"{100.0 * n_alarms / options.windows:.1f}")
            rows.append(cells)
            print(" | ".join(cells), flush=True)
    print()
    table(["rows", "columns", *options.kinds], rows, markdown)


def power(options: argparse.Namespace, markdown: bool) -> None:
    """Of 20 columns with a common factor; windows of 500 rows."""
    d, n_rows, n_windows = 20, 500, 100
    drifts: dict[str, Callable[[np.random.Generator, Array], Array]] = {
        "one column by 0.25 deviations": lambda rng, x: x + np.eye(d, dtype=np.float32)[0] * np.float32(0.25),
        "all columns by 0.05 deviations": lambda rng, x: x + np.float32(0.05) * np.sign(np.arange(d) % 2 - 0.5),
        "one column 30 % wider": lambda rng, x: x * (1.0 + 0.3 * np.eye(d, dtype=np.float32)[0]),
        "2 % of one column far away": lambda rng, x: np.where(
            (rng.random((len(x), 1)) < 0.02) & (np.arange(d) == 0), np.float32(2.5), x
        ),
        "one column out of step": lambda rng, x: np.concatenate([rng.permutation(x[:, :1]), x[:, 1:]], axis=1),
        "all columns out of step": lambda rng, x: np.stack([rng.permutation(c) for c in x.T], axis=1),
    }

    def draw(rng: np.random.Generator, n: int) -> Array:
        made: Array = np.float32(0.7) * independent(rng, n, 1) + np.float32(0.714) * independent(rng, n, d)
        return made

    ways: dict[str, tuple[bool, tuple[str, ...]]] = {
        "PSI": (False, ("psi",)),
        "KS": (False, ("kolmogorov_smirnov",)),
        "PSI, KS": (False, ("psi", "kolmogorov_smirnov")),
        "Wasserstein": (False, ("wasserstein",)),
        "PSI, KS, directions": (True, ("psi", "kolmogorov_smirnov")),
        "PSI, Wasserstein, directions": (True, ("psi", "wasserstein")),
        "PSI, KS, Wasserstein, directions": (True, ("psi", "kolmogorov_smirnov", "wasserstein")),
    }
    training = draw(np.random.default_rng(0), 20_000)
    cells: dict[str, list[str]] = {name: [name] for name in drifts}
    for with_joint, statistics in ways.values():
        reference = reference_of(training, 1, with_joint=with_joint)
        judge, empty = Judge(reference, DriftSettings(statistics=statistics)), Sketch(reference.bins)
        for name, drift in drifts.items():
            rng = np.random.default_rng(2)
            found = [
                judge.level(window_of(empty, drift(rng, draw(rng, n_rows)).astype(np.float32))) <= 0.01
                for _ in range(n_windows)
            ]
            cells[name].append(f"{sum(found)}")
    print(f"Windows of {n_rows} rows and {d} columns called drifted, in %, at 1 % false alarms\n")
    table(["change", *ways], list(cells.values()), markdown)


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows in the order of time. `begins` are the rows at which what the model sees changes, the first at 0."""

    name: str
    reference: Reference
    inputs: Array
    labels: Array
    confidence: Array
    errors: Array
    begins: tuple[int, ...]
    window: int


def stream_of(
    name: str,
    model: Any,
    training: tuple[Array, Array],
    watched: Array,
    parts: Sequence[tuple[Array, Array]],
    window: int,
) -> Stream:
    """`model` learns from `training`, the reference from `watched`, new to it; `parts` follow each other."""
    model.fit(*training)
    classes = model.classes_

    def answers(values: Array) -> tuple[Array, Array]:
        scores = model.predict_proba(values)
        return classes[scores.argmax(axis=1)], scores.max(axis=1).astype(np.float32)

    labels, confidence = answers(watched)
    tensors: dict[str, Any] = {"inputs": {"x": watched.astype(np.float32)}, "outputs": {"label": labels.astype(str)}}
    layout = layout_of(**tensors, confidence=confidence)
    reference = learn(layout, layout.rows(**tensors, confidence=confidence), np.random.default_rng(0))
    inputs = np.concatenate([values for values, _ in parts]).astype(np.float32)
    truth = np.concatenate([truths for _, truths in parts])
    labels, confidence = answers(inputs)
    begins = np.cumsum([0, *(len(values) for values, _ in parts[:-1])]).tolist()
    return Stream(name, reference, inputs, labels.astype(str), confidence, labels != truth, tuple(begins), window)


def digits(seed: int) -> Stream:
    """The digits for training, the reference, and those that come are different ones; of the last, most come in each
    part, in another order."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    pixels, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(pixels))
    train, watched, held = np.split(order, [700, 1300])
    parts = []
    for kind in ("clean", "blur", "clean", "noise", "clean", "shift", "clean", "inverted", "clean"):
        drawn = rng.choice(held, 400, replace=False)
        images = corrupted(pixels[drawn].reshape(-1, 8, 8) / 16.0, kind, rng)
        parts.append((images.reshape(-1, 64), truth[drawn]))
    model = LogisticRegression(max_iter=300)
    name = "digits, corrupted"
    return stream_of(name, model, (pixels[train] / 16.0, truth[train]), pixels[watched] / 16.0, parts, 50)


def insects(folder: Path, seed: int) -> Stream:
    from sklearn.linear_model import LogisticRegression

    values, truth = read(folder / "abrupt_insects.zip")
    third = len(values) // 3
    order = np.random.default_rng(seed).permutation(third)
    train, watched, first = np.split(order, [500, 1100])
    parts = [
        (values[first], truth[first]),
        (values[third : 2 * third], truth[third : 2 * third]),
        (values[2 * third :], truth[2 * third :]),
    ]
    model = LogisticRegression(max_iter=300)
    return stream_of("insects", model, (values[train], truth[train]), values[watched], parts, 100)


def postures(folder: Path, seed: int, *, in_order: bool) -> Stream:
    """The first person, the last one, and both again. In the order of time, rows resemble those just before them."""
    from sklearn.ensemble import RandomForestClassifier

    values, truth = read(folder / "posture.zip")
    rng = np.random.default_rng(seed)
    first = np.arange(20_000)
    if in_order:  # whole stretches of time are left out for training and reference
        stretch = first // 500
        train, watched, live = (first[np.isin(stretch % 4, which)] for which in ([0], [1], [2, 3]))
    else:
        train, watched, live = np.split(rng.permutation(first), [5000, 10_000])
    last = np.arange(len(values) - 20_000, len(values))
    last = last if in_order else rng.permutation(last)
    parts = [live[:5000], last[:5000], live[5000:], last[5000:10_000]]
    model = RandomForestClassifier(20, max_depth=10, n_jobs=1, random_state=0)
    return stream_of(
        f"postures, {'in order' if in_order else 'shuffled'}",
        model,
        (values[train], truth[train]),
        values[watched],
        [(values[part], truth[part]) for part in parts],
        250,
    )


def read(path: Path) -> tuple[Array, Array]:
    """Features and classes of one of the zipped tables."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as lines:
        rows = [line.decode().strip().split(",") for line in lines if line.strip()]
    return np.array([row[:-1] for row in rows], np.float64), np.array([row[-1] for row in rows])


def by_windows(stream: Stream, settings: DriftSettings) -> list[int]:
    """The rows at whose end drift was found to begin or to be over."""
    judge, events, drifted = Judge(stream.reference, settings), [], False
    for start in range(0, len(stream.inputs) - stream.window + 1, stream.window):
        part = slice(start, start + stream.window)
        sketch = Sketch(stream.reference.bins)
        tensors = {"x": stream.inputs[part]}, {"label": stream.labels[part]}, stream.confidence[part]
        sketch.add(stream.reference.layout.rows(*tensors))
        now = judge.level(sketch) <= settings.false_alarms
        if now != drifted:
            events.append(start + stream.window)
        drifted = now
    return events


def by_river(detector: Any, signal: Array) -> list[int]:
    events = []
    for i, value in enumerate(signal.tolist()):
        detector.update(float(value))
        if detector.drift_detected:
            events.append(i + 1)
    return events


def scored(stream: Stream, events: Sequence[int]) -> tuple[int, int, int, list[int]]:
    """Changes found, missed, false alarms, and the delays in rows. The first event after a change, and before the next,
    has found it; every other is false."""
    ends = [*stream.begins[1:], len(stream.inputs)]
    found, false, delays = 0, 0, []
    for i, (begin, end) in enumerate(zip(stream.begins, ends, strict=True)):
        within = [event for event in events if begin < event <= end]
        if i and within:
            found += 1
            delays.append(within[0] - begin)
            within = within[1:]
        false += len(within)
    return found, len(stream.begins) - 1 - found, false, delays


def detection(options: argparse.Namespace, markdown: bool) -> None:
    from river.drift import ADWIN, KSWIN, PageHinkley

    data = Path(options.data)
    makers: list[Callable[[int], Stream]] = [digits]
    if (data / "posture.zip").exists():
        makers += [
            lambda seed: insects(data, seed),
            lambda seed: postures(data, seed, in_order=False),
            lambda seed: postures(data, seed, in_order=True),
        ]
    ways: dict[str, Callable[[Stream, int], list[int]]] = {
        "Fenix": lambda s, seed: by_windows(s, DriftSettings(seed=seed)),
        "ADWIN on confidence": lambda s, seed: by_river(ADWIN(), s.confidence),
        "KSWIN on confidence": lambda s, seed: by_river(KSWIN(alpha=0.0001, seed=seed), s.confidence),
        "Page-Hinkley on confidence": lambda s, seed: by_river(PageHinkley(mode="both"), s.confidence),
        "ADWIN on errors (labels)": lambda s, seed: by_river(ADWIN(), s.errors),
        "Page-Hinkley on errors (labels)": lambda s, seed: by_river(PageHinkley(mode="both"), s.errors),
        "every 5 windows": lambda s, seed: list(range(5 * s.window, len(s.inputs) + 1, 5 * s.window)),
    }
    rows = []
    for make in makers[options.streams[0] : options.streams[1]]:
        sums: dict[str, list[Any]] = {name: [0, 0, 0, [], 0.0, 0] for name in ways}
        title = ""
        for seed in range(options.seeds):
            stream = make(seed)
            title = stream.name
            for name, way in ways.items():
                began_s = time.perf_counter()
                events = way(stream, seed)
                sums[name][4] += time.perf_counter() - began_s
                sums[name][5] += len(stream.inputs)
                found, missed, false, delays = scored(stream, events)
                for i, more in enumerate((found, missed, false, delays)):
                    sums[name][i] += more
        for name, (found, missed, false, delays, took_s, n) in sums.items():
            f1 = 2 * found / max(2 * found + missed + false, 1)
            delay = f"{np.mean(delays):,.0f}" if delays else "-"
            cells = [title, name, f"{found} of {found + missed}", str(false), f"{f1:.2f}", delay]
            rows.append([*cells, f"{1e6 * took_s / n:.0f}"])
            print(" | ".join(rows[-1]), flush=True)
    print(f"\nChanges found, over {options.seeds} seeds; delay in rows, on average, of those found\n")
    table(["stream", "detector", "found", "false alarms", "F1", "delay", "us per row"], rows, markdown)


def cost(options: argparse.Namespace, markdown: bool) -> None:
    """64 columns of float32, beside which directions are watched."""
    values = independent(np.random.default_rng(0), 20_000, 64)
    reference = reference_of(values, 0)
    n = 8192
    rows = []
    for size in (1, 32, 128):
        batches = [{"x": values[i : i + size]} for i in range(0, n, size)]
        gatherer = Gatherer(reference, random.Random(0), 0.0, most_rows_per_s=1e12)
        offers, folds = [], []
        for round_ in range(7):
            began_s = time.perf_counter()
            for batch in batches:
                gatherer.offer(size, batch)
            offers.append((time.perf_counter() - began_s) / n)
            began_s = time.thread_time()
            gatherer.fold(float(round_ + 1))
            folds.append((time.thread_time() - began_s) / n)
        on_path, off_path = 1e6 * min(offers), 1e6 * min(folds)
        rows.append([str(size), f"{on_path * size:.2f}", f"{on_path:.3f}", f"{off_path:.2f}"])
    print("Microseconds to take a batch on the request's path, and of processor time to count a row off it\n")
    table(["rows per batch", "taken, per batch", "taken, per row", "counted, per row"], rows, markdown)
    sketch = Sketch(reference.bins)
    for _ in range(25):
        sketch.add(Rows(values))
    judge = Judge(reference)
    began_s = time.perf_counter()
    judge.report(sketch.empty(), 0.0, 1.0)
    judge.report(window_of(sketch, values[:500]), 0.0, 1.0)
    first_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    judge.report(window_of(sketch, values[500:1000]), 0.0, 1.0)
    next_s = time.perf_counter() - began_s
    sizes = f"{len(sketch.to_bytes()) / 1e3:.0f} kB as bytes, {memory_kb(sketch):.0f} kB held"
    print(f"sketch of {sketch.n_rows:,} rows: {sizes}")
    print(f"reference: {len(reference.to_bytes()) / 1e3:.0f} kB as bytes")
    print(f"report: {1e3 * first_s:.0f} ms for the first window of a size, {1e3 * next_s:.0f} ms for the next\n")


def memory_kb(sketch: Sketch) -> float:
    """What another sketch of as many rows adds to the process, kB; the mean of 200."""
    import psutil

    process = psutil.Process()
    data = sketch.to_bytes()
    kept = [Sketch.from_bytes(data, sketch.bins) for _ in range(100)]
    before = process.memory_info().rss
    kept += [Sketch.from_bytes(data, sketch.bins) for _ in range(200)]
    return (process.memory_info().rss - before) / 200 / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 10, 64, 200])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--training", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs=2, default=[0, 4], help="which streams, from and up to")
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; there are {', '.join(PARTS)}")
        globals()[part](options, options.markdown)


if __name__ == "__main__":
    main()
