"""The lineage as OpenLineage events (https://openlineage.io): a run for each way a version was made.

Models and training data are datasets, edges of one kind into one version are a run of the job of that kind, with the
parents as inputs and the version as output. The same lineage gives the same events, ids of runs included, so a server
that takes them twice knows the second as the first. Needs the extra `fenix-serve[openlineage]`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from lineage.errors import StoreUnavailable
from lineage.graph.family import Family
from lineage.graph.records import DataSignature, Edge, Version

NAMESPACE = "fenix"
PRODUCER = "urn:fenix:lineage"
_TRAIN = "train"  # the job of a version that was made from no other


def run_events(family: Family, *, namespace: str = NAMESPACE, producer: str = PRODUCER) -> list[Any]:
    """A START and a COMPLETE event per run, as the classes of the OpenLineage client, for its `emit`.

    Raises StoreUnavailable without the extra.
    """
    _import_client()
    into: dict[str, dict[str, list[Edge]]] = {}
    for edge in family.edges:
        into.setdefault(edge.child, {}).setdefault(edge.kind, []).append(edge)
    writer = _Writer(family, namespace, producer)
    events = []
    for version in family.versions.values():
        for kind, edges in into.get(version.id, {}).items():
            events += writer.events(version, kind, edges)
        if version.id not in into and version.data is not None:
            events += writer.events(version, _TRAIN, ())
    return events


def openlineage_json(family: Family, *, namespace: str = NAMESPACE, producer: str = PRODUCER) -> str:
    """The events of `run_events` as JSON, one on a line, as the client's file transport writes them."""
    events = run_events(family, namespace=namespace, producer=producer)
    return "".join(f"{_import_client().serde.Serde.to_json(event)}\n" for event in events)


class _Writer:
    def __init__(self, family: Family, namespace: str, producer: str) -> None:
        self._family = family
        self._namespace = namespace
        self._producer = producer

    def events(self, child: Version, kind: str, edges: Sequence[Edge]) -> list[Any]:
        """A START and a COMPLETE event of the run that made `child` by these edges of one kind."""
        v2 = _import_client().event_v2
        time = datetime.fromtimestamp(
            max([edge.made_s for edge in edges], default=0.0) or child.made_s, UTC
        ).isoformat()
        run_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._namespace}/{child.id}/{kind}"))
        job = v2.Job(self._namespace, kind, {"jobType": self._job_type(kind)})
        start = v2.RunEvent(
            eventTime=time,
            producer=self._producer,
            run=v2.Run(run_id),
            job=job,
            eventType=v2.RunState.START,
        )
        parents = [self._family.versions[edge.parent] for edge in edges]
        data = {one.id: one for one in (child.data, *(edge.data for edge in edges)) if one is not None}
        complete = v2.RunEvent(
            eventTime=time,
            producer=self._producer,
            run=v2.Run(run_id, self._of_run(edges)),
            job=job,
            eventType=v2.RunState.COMPLETE,
            inputs=[*(self._model(parent, v2.InputDataset) for parent in parents), *map(self._data, data.values())],
            outputs=[self._model(child, v2.OutputDataset)],
        )
        return [start, complete]

    def _model(self, version: Version, made: Any) -> Any:
        facets = _import_client().facet_v2
        name = f"{version.name}/{version.number}" if version.name else version.id
        return made(
            self._namespace,
            f"models/{name}",
            facets={
                "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(
                    datasetVersion=version.id, producer=self._producer
                ),
                "datasetType": facets.dataset_type_dataset.DatasetTypeDatasetFacet(
                    datasetType="MODEL", producer=self._producer
                ),
            },
        )

    def _data(self, data: DataSignature) -> Any:
        facets = _import_client().facet_v2
        fields = [
            facets.schema_dataset.SchemaDatasetFacetFields(name=column.name, type=column.datatype, ordinal_position=i)
            for i, column in enumerate(data.columns, 1)
        ]
        return _import_client().event_v2.InputDataset(
            self._namespace,
            f"data/{data.dataset}",
            facets={
                "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(
                    datasetVersion=data.id, producer=self._producer
                ),
                "schema": facets.schema_dataset.SchemaDatasetFacet(fields=fields, producer=self._producer),
            },
            inputFacets={
                "inputStatistics": facets.input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                    rowCount=data.n_rows, producer=self._producer
                )
            },
        )

    def _of_run(self, edges: Iterable[Edge]) -> dict[str, Any]:
        """What the edges say, in facets: parameters where OpenLineage has them, the rest in one of our own."""
        facets = _import_client().facet_v2
        parameters: dict[str, str] = {}
        told = []
        for edge in edges:
            parameters |= {name: json.dumps(value) for name, value in edge.params.items()}
            told.append({"parent": edge.parent, "metrics": dict(edge.metrics), "drift": dict(edge.drift)})
        if not told:
            return {}
        return {
            "executionParameters": facets.execution_parameters_run.ExecutionParametersRunFacet(
                parameters=[
                    facets.execution_parameters_run.ExecutionParameter(key=name, value=value)
                    for name, value in parameters.items()
                ],
                producer=self._producer,
            ),
            "fenix_transformation": facets.RunFacet(producer=self._producer).with_additional_properties(parents=told),
        }

    def _job_type(self, kind: str) -> Any:
        return _import_client().facet_v2.job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="FENIX", jobType=kind.upper(), producer=self._producer
        )


def _import_client() -> Any:
    try:
        import openlineage.client.event_v2
        import openlineage.client.facet_v2
        import openlineage.client.serde
    except ImportError:
        raise StoreUnavailable(
            "OpenLineage needs its client, which is not installed.",
            hint="Install it: pip install 'fenix-serve[openlineage]'.",
        ) from None
    return openlineage.client
