"""Token probes on a million tokens: the time of each part, and the memory that it takes.

    python -m bench.tokens [--tokens 1000000] [--width 576] [--folder FOLDER] [--study]
                           [--docs NAME] [--output FILE]

A store is written of answers of 200 judged tokens each, claims of 1 to 5 tokens, with states in
bfloat16 at one layer. Each part runs in a process of its own, so that the peak of its memory is
its own. scikit-learn fits the same tokens from arrays in memory, with the same penalties and
weights: ``StandardScaler`` and ``LogisticRegression``, with its default tolerance. The loss that
each reaches is shown, so that nobody is faster by stopping early.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from activation_logging.console import PlainConsole
from activation_logging.records import Capture, Segment, SegmentSlice, Span
from activation_logging.store import StoreWriter, open_store
from bench.docs import add_flag, record, write_figures

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

LAYER, DEPTH, PER_ANSWER = 15, 30, 200
STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
FOLDS = 5
terminal = PlainConsole(width=140)


class Part(NamedTuple):
    """Seconds and peak MiB of one part, and what it has to say."""

    seconds: float
    peak: float
    note: str = ""


def write_store(path: Path, tokens: int, width: int) -> None:
    """Answers whose states know their claims' labels a little, along one direction."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=width)
    direction /= np.linalg.norm(direction)
    scale = np.exp(rng.normal(size=width)).astype(np.float32)
    spans: dict[str, list[Span]] = {}
    pieces = [f" w{i}" for i in range(PER_ANSWER)] + [""]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.append(0, ends[:-1])
    writer = StoreWriter(path, role="bench")
    for number in range(tokens // PER_ANSWER):
        request = f"answer-{number}"
        cuts = np.cumsum(rng.integers(1, 6, PER_ANSWER))
        cuts = np.r_[0, cuts[cuts < PER_ANSWER], PER_ANSWER]
        wrong = rng.random(len(cuts) - 1) < 0.6
        label = np.repeat(wrong, np.diff(cuts))
        states = rng.standard_normal((PER_ANSWER + 1, width), np.float32)
        states[1:] += np.where(label, 0.4, -0.4)[:, None] * direction
        bits = ((states * scale).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        segment = request.encode().ljust(24, b"-")
        writer.put_capture(
            Capture(
                id=request,
                layers=[LAYER],
                num_layers=DEPTH,
                hidden_size=width,
                dtype="bfloat16",
                first=0,
                slices=[SegmentSlice(segment, 0, PER_ANSWER + 1)],
                segments=[Segment(segment, {LAYER: bits}, bits.nbytes)],
            )
        )
        writer.put_entry(
            {
                "prompt": f"Tell me of thing {number}.",
                "response": "".join(pieces),
                "model": "bench",
                "request_id": request,
                "capture": request,
                "prompt_token_ids": [0],
                "response_token_ids": list(range(PER_ANSWER + 1)),
                "response_tokens": pieces,
                "shared_characters": [],
                "logprobs": [-1.0] * (PER_ANSWER + 1),
                "finish_reason": "stop",
                "tokens": "all",
                "created": 0.0,
                "vllm_version": "0",
            }
        )
        spans[request] = [
            Span(
                int(starts[first]) + 1,
                int(ends[last - 1]),
                "contradicted" if bad else "supported",
                claim=f"type {first % 7}",
            )
            for first, last, bad in zip(cuts[:-1], cuts[1:], wrong, strict=True)
        ]
    writer.close()
    with open_store(path, writable=True) as store:
        for request, claims in spans.items():
            (entry,) = store.for_request(request)
            store.put_evaluation(entry.key, name="bench", label="hallucinated", spans=claims)


def find(path: str) -> str:
    """Find the tokens and their labels, without states."""
    with open_store(path) as store:
        tokens = store.tokens("bench", layer=LAYER)
        return f"{len(tokens):,} tokens of {len(tokens.spans.y):,} claims"


def one_pass(path: str) -> str:
    """Read every state once, in batches."""
    with open_store(path) as store:
        size = sum(batch.X.nbytes for batch in store.tokens("bench", layer=LAYER))
    return f"{size / 2**20:,.0f} MiB of float32"


def fit_from_store(path: str) -> str:
    """One probe, from the store, with no more than 512 MiB of states in memory."""
    from activation_logging.detectors.tokens.fitting import Problems
    from activation_logging.detectors.tokens.rows import gather

    with open_store(path) as store:
        tokens = store.tokens("bench", layer=LAYER)
        rows = gather((batch.X for batch in tokens), len(tokens), tokens.width)
        use = np.ones((len(tokens), 1), bool)
        (fitted,) = Problems(rows, tokens.y, tokens.weights, use).fit([0.01])
        odds = fitted.odds(rows)[:, 0]
    return f"loss {_loss(odds, tokens.y, tokens.weights):.6f}"


def fit_in_memory(path: str) -> tuple[float, str]:
    """One probe from an array in memory; reading it is not counted."""
    from activation_logging.detectors.tokens.linear import TokenProbe

    X, y, weight = _arrays(path)
    begun = time.perf_counter()
    probe = TokenProbe(C=0.01).fit(X, y, sample_weight=weight)
    took = time.perf_counter() - begun
    return took, f"loss {_loss(probe.decision_function(X), y, weight):.6f}"


def fit_by_sklearn(path: str) -> tuple[float, str]:
    """The same by scikit-learn."""
    X, y, weight = _arrays(path)
    begun = time.perf_counter()
    odds = _sklearn(X, y, weight, 0.01)
    return time.perf_counter() - begun, f"loss {_loss(odds, y, weight):.6f}"


def folds_in_memory(path: str) -> tuple[float, str]:
    """Every fold and penalty of a study at once: 10 parts, 4 penalties."""
    from activation_logging.detectors.tokens.fitting import Problems
    from activation_logging.detectors.tokens.rows import InMemory

    X, y, weight = _arrays(path)
    use = _use(len(y))
    begun = time.perf_counter()
    Problems(InMemory(X), y, weight, use).fit(STRENGTHS)
    return time.perf_counter() - begun, f"{use.shape[1] * len(STRENGTHS)} fits"


def folds_by_sklearn(path: str) -> tuple[float, str]:
    """The same fits one after the other by scikit-learn: those of one part, times their number."""
    X, y, weight = _arrays(path)
    use = _use(len(y))
    part = use[:, 0]
    X, y, weight = X[part], y[part], weight[part]
    begun = time.perf_counter()
    for C in STRENGTHS:
        _sklearn(X, y, weight, C)
    took = (time.perf_counter() - begun) * use[:, :].sum() / part.sum()
    return float(took), f"{len(STRENGTHS)} fits measured, {use.shape[1] * len(STRENGTHS)} told"


def study(path: str) -> str:
    """``run_token_study`` with all controls, probes of answers and intervals of 200 draws."""
    from activation_logging.detectors.tokens import TokenOptions, run_token_study

    begun = time.perf_counter()
    parts: list[tuple[str, float]] = [("", begun)]

    def progress(what: str, done: int, total: int) -> None:
        del done, total
        if what != parts[-1][0]:
            parts.append((what, time.perf_counter()))

    with open_store(path) as store:
        run_token_study(store, "bench", TokenOptions(draws=200), progress=progress)
    progress("", 0, 0)
    took: dict[str, float] = {}
    for (what, start), (_, end) in pairwise(parts):
        took[what] = took.get(what, 0.0) + end - start
    told = ", ".join(f"{what} {each:.0f} s" for what, each in took.items() if each >= 1)
    return f"{time.perf_counter() - begun:.0f} s: {told}"


def _arrays(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    with open_store(path) as store:
        tokens = store.tokens("bench", layer=LAYER)
        return tokens.X, tokens.y, tokens.weights


def _use(count: int) -> npt.NDArray[np.bool_]:
    """For each of 5 folds the rows without the test part, and those without validation too."""
    fold = np.arange(count) * FOLDS // count
    train = fold[:, None] != np.arange(FOLDS)
    fit = train & (fold[:, None] != (np.arange(FOLDS) + 1) % FOLDS)
    return np.hstack([fit, train])


def _sklearn(
    X: npt.NDArray[Any], y: npt.NDArray[Any], weight: npt.NDArray[Any], C: float
) -> npt.NDArray[Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    states = StandardScaler().fit_transform(X, sample_weight=weight)
    fitted = LogisticRegression(C=C, max_iter=2000).fit(states, y, sample_weight=weight)
    return np.asarray(fitted.decision_function(states))


def _loss(odds: npt.NDArray[Any], y: npt.NDArray[Any], weight: npt.NDArray[Any]) -> float:
    signed = np.where(y == 1, -odds, odds).astype(np.float64)
    return float(weight @ np.logaddexp(0, signed) / weight.sum())


def _measured(function: Callable[[str], Any], path: str) -> Part:
    begun = time.perf_counter()
    found = function(path)
    took, note = found if isinstance(found, tuple) else (time.perf_counter() - begun, found)
    return Part(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, note)


def _alone(function: Callable[[str], Any], path: Path) -> Part:
    """Run a part in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, str(path)).result()


PARTS: dict[str, Callable[[str], Any]] = {
    "find the tokens": find,
    "find and read them, one pass": one_pass,
    "find, read and fit one probe": fit_from_store,
    "fit one probe, array in memory": fit_in_memory,
    "scikit-learn: fit one probe": fit_by_sklearn,
    "fit 5 folds x 2 x 4 penalties": folds_in_memory,
    "scikit-learn: the same": folds_by_sklearn,
}


def main() -> None:
    """Write the store, run each part, print the table."""
    parser = argparse.ArgumentParser(description="Token probes on a million tokens.")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--folder", type=Path, help="keep the store here, and use it again")
    parser.add_argument("--study", action="store_true", help="the whole study, too")
    parser.add_argument("--only", help="parts whose names hold this text")
    parser.add_argument("--output", type=Path)
    add_flag(parser)
    args = parser.parse_args()
    parts = {**PARTS, **({"run_token_study": study} if args.study else {})}
    parts = {name: part for name, part in parts.items() if (args.only or "") in name}
    table = Table("part", title=f"{args.tokens:,} tokens of width {args.width}")
    for name in ("seconds", "peak MiB"):
        table.add_column(name, justify="right")
    table.add_column("")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        path = (args.folder or Path(scratch)) / f"tokens-{args.tokens}-{args.width}"
        if not path.exists():
            write_store(path, args.tokens, args.width)
        figures = {}
        for name, function in parts.items():
            part = _alone(function, path)
            figures[name] = part._asdict()
            table.add_row(name, f"{part.seconds:.1f}", f"{part.peak:,.0f}", part.note)
            terminal.print(f"{name}: {part.seconds:.1f} s, {part.peak:,.0f} MiB, {part.note}")
    terminal.print(table)
    record(args.docs, table)
    write_figures(args.output, {"tokens": args.tokens, "width": args.width, "parts": figures})


if __name__ == "__main__":
    main()
