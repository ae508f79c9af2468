"""`/metrics`: what a gateway counts, and what the ledger has learned, as Prometheus reads it.

Each scrape makes the figures anew, in a registry of its own, so nothing is shared with what Ray exports of the process.
Where several gateways share a port a scrape meets one of them: the label `gateway` tells them apart.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deployments.claims import Learned
from deployments.gateway.messages import Engine
from deployments.gateway.quality import QualityDesk
from deployments.gateway.quality_routes import quality_routes
from deployments.gateway.recorder import Recorder, RecorderFigures
from deployments.gateway.rest import StrictRoute, may_answer
from deployments.gateway.tally import EDGES_S, Tally
from lineage.quality import Estimate, Finding, Quality
from lineage.quality.learner import Overview

MEDIA = "text/plain; version=0.0.4; charset=utf-8"


class _Families(Collector):
    """Metrics that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def observing_routes(
    engine: Engine, tally: Tally, ledger: Learned | None, recorder: Recorder | None
) -> list[APIRouter]:
    """All that tells how well the gateway, the versions and the plans do. Without a journal there is neither a ledger
    nor a recorder."""
    desk = QualityDesk(engine, ledger)
    figures = None if recorder is None else recorder.figures
    run = secrets.token_hex(10) if recorder is None else recorder.run
    return [quality_routes(engine, desk), metrics_route(engine, tally, desk, figures, run)]


def metrics_route(
    engine: Engine,
    tally: Tally,
    desk: QualityDesk,
    recorder: Callable[[], RecorderFigures] | None = None,
    gateway: str = "",
) -> APIRouter:
    """The route. `recorder` tells the figures of the journal's recorder; `gateway` names this process."""
    router = APIRouter(tags=["Metrics"], route_class=StrictRoute)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **may_answer(400, 500),
        },
    )
    async def metrics() -> Response:
        """Requests, latencies, the journal, and the quality of versions and plans over the last hour."""
        families = [*_of_gateway(engine, gateway), *_of_requests(tally, gateway)]
        if recorder is not None:
            families += _of_recorder(recorder(), gateway)
        learned = await desk.lately()
        families.append(_known(learned is not None))
        if learned is not None:
            families += _of_quality(*learned)
        registry = CollectorRegistry()
        registry.register(_Families(families))
        return Response(generate_latest(registry), media_type=MEDIA)

    return router


def _known(known: bool) -> Metric:
    return GaugeMetricFamily("fenix_quality_known", "Whether the ledger tells the quality figures.", value=float(known))


def _of_gateway(engine: Engine, gateway: str) -> Iterator[Metric]:
    catalogue = engine.catalogue
    for name, help, value in (
        ("fenix_ready", "Whether the gateway answers requests.", float(engine.ready())),
        ("fenix_catalogue_epoch", "The snapshot of the catalogue that it follows.", catalogue.epoch),
        ("fenix_catalogue_extensions", "Extension versions in the catalogue.", len(catalogue.cards)),
        ("fenix_catalogue_goals", "Goals in the catalogue.", len(catalogue.goals)),
        ("fenix_inline_extensions", "Extension versions that run in the gateway's process.", len(engine.inline())),
    ):
        family = GaugeMetricFamily(name, help, labels=("gateway",))
        family.add_metric((gateway,), value)
        yield family


def _of_requests(tally: Tally, gateway: str) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "fenix_requests", "Inference requests that ended, by HTTP status (over gRPC that of the error).",
        labels=("gateway", "model", "code"),
    )  # fmt: skip
    took = HistogramMetricFamily(
        "fenix_request_duration_seconds", "From the request being there to its answer, of those that were answered.",
        labels=("gateway", "model"),
    )  # fmt: skip
    for model, meter in tally.meters.items():
        if meter.n_answered:
            requests.add_metric((gateway, model, "200"), meter.n_answered)
            counts, n = [], 0
            for edge, count in zip((*map(repr, EDGES_S), "+Inf"), meter.buckets, strict=True):
                n += count
                counts.append((edge, float(n)))
            took.add_metric((gateway, model), counts, meter.total_s)
        for status, n in sorted(meter.refused.items()):
            requests.add_metric((gateway, model, str(status)), n)
    yield requests
    yield took


def _of_recorder(figures: RecorderFigures, gateway: str) -> list[Metric]:
    outcomes = CounterMetricFamily(
        "fenix_journal_outcomes", "Outcomes of requests: added, written to the journal, and lost for want of room.",
        labels=("gateway", "state"),
    )  # fmt: skip
    for state in ("added", "written", "lost"):
        outcomes.add_metric((gateway, state), getattr(figures, state))
    waiting = GaugeMetricFamily(
        "fenix_journal_waiting_bytes", "Outcomes that wait to be written.", labels=("gateway", "where")
    )
    waiting.add_metric((gateway, "memory"), figures.memory_bytes)
    waiting.add_metric((gateway, "disk"), figures.spool_bytes)
    failing = GaugeMetricFamily("fenix_journal_failing", "1 while the journal cannot be written.", labels=("gateway",))
    failing.add_metric((gateway,), float(bool(figures.failing)))
    return [outcomes, waiting, failing]


def _of_quality(seen: Overview, found: Sequence[Finding]) -> list[Metric]:
    poor = GaugeMetricFamily(
        "fenix_poor", "1 where a version or plan does poorly over the last hour: in which regard, against what.",
        labels=("id", "check", "against"),
    )  # fmt: skip
    for one in found:
        poor.add_metric((one.id, one.check, one.against), 1.0)
    versions = [((id_,), quality) for id_, quality in seen.versions.items()]
    return [
        *_figures("extension", ("extension",), versions),
        *_figures("plan", ("goal", "plan"), list(seen.plans.items())),
        poor,
    ]


# name, what it is, the figure
_FIGURES: tuple[tuple[str, str, Callable[[Quality], Estimate | None]], ...] = (
    ("requests_per_second", "Requests", lambda q: q.throughput_per_s),
    ("error_rate", "Share of requests without an answer", lambda q: q.error_rate),
    ("accuracy", "Share of right ones of the rows whose label is known", lambda q: q.accuracy),
    ("macro_f1", "Mean F1 of the classes", lambda q: q.macro_f1),
    ("ece", "Expected calibration error", lambda q: None if q.by_width is None else q.by_width.ece),
    ("mean_confidence", "Mean confidence", lambda q: q.confidence),
    ("mean_absolute_error", "Of predicted numbers", lambda q: None if q.errors is None else q.errors.mae),
    ("rating", "Mean rating", lambda q: q.rating),
)


def _figures(what: str, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Quality]]) -> Iterator[Metric]:
    """Each figure with its 95 % limits, over the last hour."""
    for name, help, figure in _FIGURES:
        for end, limit, which in (
            ("", "value", ""),
            ("_low", "low", ": lower limit"),
            ("_high", "high", ": upper limit"),
        ):
            family = GaugeMetricFamily(
                f"fenix_{what}_{name}{end}", f"{help}, over the last hour{which}.", labels=labels
            )
            for key, quality in rows:
                estimate = figure(quality)
                if estimate is not None:
                    family.add_metric(key, getattr(estimate, limit))
            yield family
    judged = GaugeMetricFamily(
        f"fenix_{what}_judged_rows", "Rows of the last hour whose truth is known.", labels=labels
    )
    took = GaugeMetricFamily(
        f"fenix_{what}_latency_seconds", "Quantiles of the latency, over the last hour.", labels=(*labels, "quantile")
    )
    for key, quality in rows:
        judged.add_metric(key, quality.n_judged + (0 if quality.errors is None else quality.errors.mae.n))
        for quantile, taken in (("0.5", quality.p50_ms), ("0.95", quality.p95_ms), ("0.99", quality.p99_ms)):
            if taken is not None:
                took.add_metric((*key, quantile), taken.value / 1e3)
    yield judged
    yield took
