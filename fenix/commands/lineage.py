"""`fenix lineage`: which model version was made from which others, and what follows from that.

These commands read the database of the settings themselves: they need no cluster that runs, and disturb none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import Output, Overrides, SettingsFile, load_settings
from fenix.output import Format, emit, grid, pairs
from planner.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.settings import Settings
    from lineage.graph.lineage import Lineage
    from lineage.graph.records import Edge, VersionId
    from lineage.graph.tensors import TensorStore

VersionArg = Annotated[
    str,
    typer.Argument(
        metavar="VERSION", show_default=False, help="NAME@NUMBER, models:/NAME/NUMBER, or digits of its id."
    ),
]
OtherArg = Annotated[str, typer.Argument(metavar="OTHER", show_default=False, help="The other version.")]
Most = Annotated[int, typer.Option("--most", min=1, help="How many versions at most, the nearest first.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of to stdout.")]

lineage = typer.Typer(
    name="lineage",
    help="Which model version was made from which others, and what follows from that.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@lineage.command()
def show(
    version: VersionArg,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw its family there.")] = None,
    most: Most = 40,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Show one version: what it was made from, how, on what data, and what was made from it."""
    with _opened(settings, set_) as (known, _):
        id_ = known.resolve(version)
        found = known.store.version(id_)
        graph = known.graph()
        data = {
            "id": id_,
            "names": [f"{name}@{number}" for name, number in known.store.names(id_)],
            "made_s": found.made_s,
            "trained_on": None
            if found.data is None
            else {
                "dataset": found.data.dataset,
                "n_rows": found.data.n_rows,
                "columns": [column.name for column in found.data.columns],
            },
            "parents": [_edge(known, edge, edge.parent) for edge in known.store.edges_into([id_])],
            "children": [_edge(known, edge, edge.child) for edge in known.store.edges_out_of([id_])],
            "n_ancestors": len(graph.ancestors(id_)),
            "n_descendants": len(graph.descendants(id_)),
        }
        if svg is not None:
            _write(svg, _document(known, "svg", id_, most))
    emit(data, output, lambda: _shown(data))


@lineage.command()
def ancestors(
    version: VersionArg,
    descendants: Annotated[
        bool, typer.Option("--descendants", help="What was made from it, instead of what it was made from.")
    ] = False,
    most: Most = 100,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Show from which versions a version hails, the nearest first."""
    with _opened(settings, set_) as (known, _):
        graph = known.graph()
        id_ = known.resolve(version)
        hops = graph.descendants(id_) if descendants else graph.ancestors(id_)
        data = [{"id": one, "name": _name(known, one), "hops": n} for one, n in list(hops.items())[:most]]
    emit(data, output, lambda: _relatives(data))


@lineage.command()
def path(
    version: VersionArg,
    other: OtherArg,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Show how two versions are related, and their nearest common ancestor."""
    with _opened(settings, set_) as (known, _):
        graph = known.graph()
        ends = known.resolve(version), known.resolve(other)
        way, common = graph.path(*ends), graph.nearest_common_ancestor(*ends)
        data = {
            "related": way is not None,
            "versions": [] if way is None else [_name(known, one) for one in way.versions],
            "edges": []
            if way is None
            else [
                {"parent": _name(known, link.parent), "child": _name(known, link.child), "kind": str(link.kind)}
                for link in way.links
            ],
            "nearest_common_ancestor": None if common is None else _name(known, common.version),
        }
    emit(data, output, lambda: _way(data))


@lineage.command()
def diff(
    version: VersionArg,
    other: OtherArg,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Show tensor by tensor how two versions differ. Their weights are fetched from MLflow if need be."""
    from lineage.graph.differences import diff_stored

    with _opened(settings, set_) as (known, running):
        tensors = _tensors(running)
        ids = known.resolve(version), known.resolve(other)
        for one in ids:
            _keep(known, tensors, one, running)
        found = diff_stored(tensors, *ids)
    data = {
        "summary": found.sentence(),
        "relative_l2": found.relative_l2,
        "equal_share": found.equal_share,
        "tensors": [
            {
                "name": change.name,
                "fate": str(change.fate),
                "before": change.before,
                "after": change.after,
                "relative_l2": change.relative_l2,
                "max_abs": change.max_abs,
                "equal_share": change.equal_share,
            }
            for change in found.changes
        ],
    }
    emit(data, output, lambda: _differences(data))


@lineage.command()
def check(
    version: VersionArg, output: Output = Format.TABLE, settings: SettingsFile = None, set_: Overrides = None
) -> None:
    """Hold the parents that a version claims against its weights."""
    import numpy as np

    from lineage.graph.parentage import check_stored

    with _opened(settings, set_) as (known, running):
        tensors = _tensors(running)
        id_ = known.resolve(version)
        for one in (id_, *[edge.parent for edge in known.store.edges_into([id_])]):
            _keep(known, tensors, one, running)
        found = check_stored(known.store, tensors, id_, np.random.default_rng(0))
    data = [{"kind": str(one.kind), "holds": one.holds, "sentence": one.sentence} for one in found]
    emit(data, output, lambda: _claims(data))
    if any(one["holds"] is False for one in data):
        raise typer.Exit(1)


@lineage.command()
def impact(
    bad: Annotated[
        list[str],
        typer.Argument(metavar="BAD", show_default=False, help="Versions, or data by the hash of the rows."),
    ],
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Show what is affected if these versions or data are bad, and in which order it is to be made again."""
    from lineage.errors import UnknownVersion
    from lineage.graph.records import DatasetId

    with _opened(settings, set_) as (known, _):
        versions: list[VersionId] = []
        datasets: list[DatasetId] = []
        for text in bad:
            try:
                versions.append(known.resolve(text))
            except UnknownVersion:
                if len(text) != 64 or not known.store.trained_on(DatasetId(text)):
                    raise
                datasets.append(DatasetId(text))
        found = known.graph().impact(versions, datasets)
        waves = known.cascade(versions, datasets)
        data = {
            "direct": [_name(known, one) for one in found.direct],
            "inherited": [_name(known, one) for one in found.inherited],
            "waves": [
                [
                    {
                        "version": _name(known, one.version),
                        "from": [
                            {"parent": _name(known, edge.parent), "kind": str(edge.kind), "params": edge.params}
                            for edge in one.edges
                        ],
                    }
                    for one in wave
                ]
                for wave in waves
            ],
        }
    emit(data, output, lambda: _affected(data))


@lineage.command()
def export(
    format: Annotated[
        str, typer.Argument(metavar="FORMAT", show_default=False, help="openlineage, cyclonedx, svg, or neo4j.")
    ],
    version: Annotated[
        str, typer.Option("--version", metavar="VERSION", help="Its family alone; else everything.")
    ] = "",
    most: Most = 40,
    out: Out = None,
    uri: Annotated[str, typer.Option("--uri", help="Of neo4j: the server, such as bolt://host:7687.")] = "",
    user: Annotated[str, typer.Option("--user", help="Of neo4j.")] = "",
    password: Annotated[
        str, typer.Option("--password", help="Of neo4j.", envvar="NEO4J_PASSWORD", show_default=False)
    ] = "",
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Write the lineage for other tools: OpenLineage events, a CycloneDX ML-BOM, a picture, or into Neo4j."""
    with _opened(settings, set_) as (known, _):
        centre = known.resolve(version) if version else None
        if format == "neo4j":
            from lineage.graph.exports.neo4j import connect, export_to_neo4j
            from lineage.graph.family import nearest_family, whole_family

            if not uri:
                raise BadRequest("neo4j needs the address of a server.", hint="Give it with --uri bolt://host:7687.")
            family = whole_family(known.store) if centre is None else nearest_family(known.store, centre, most)
            with connect(uri, user, password) as driver:
                written = export_to_neo4j(driver, family)
            emit(written, Format.JSON, list)
            return
        text = _document(known, format, centre, most)
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        _write(out, text)


@lineage.command("import")
def import_(
    names: Annotated[list[str] | None, typer.Argument(metavar="MODEL", show_default=False, help="Else all.")] = None,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Take the versions of MLflow's registry into the lineage, and the parents that their tags and runs name."""
    from lineage.graph.exports.from_mlflow import import_from_mlflow

    with _opened(settings, set_) as (known, running):
        found = import_from_mlflow(_registry(running), known.store, names or None)
    data = {
        "n_versions": found.n_versions,
        "n_edges": found.n_edges,
        "n_new": found.n_new,
        "left_out": list(found.left_out),
    }
    emit(data, output, lambda: _imported(data))


@lineage.command()
def query(
    statement: Annotated[str, typer.Argument(metavar="CYPHER", show_default=False, help="A statement that reads.")],
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
    set_: Overrides = None,
) -> None:
    """Ask the lineage in Cypher; of a copy that is made for it (extra `cypher`)."""
    from lineage.graph.exports.cypher import CypherGraph

    with _opened(settings, set_) as (known, _), CypherGraph(known.store) as graph:
        found = graph.query(statement)
    data = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    emit(data, output, lambda: [grid(found.columns, [[str(cell) for cell in row] for row in found.rows])])


@contextmanager
def _opened(file: Path | None, overrides: list[str] | None) -> Iterator[tuple[Lineage, Settings]]:
    """The lineage of the settings, or of the cluster that runs on them, for as long as the block runs."""
    from cluster.lifecycle import running_settings
    from lineage.graph.lineage import open_lineage
    from planner.errors import ClusterDown

    settings = load_settings(file, overrides)
    with suppress(ClusterDown):  # the database is there all the same
        settings = running_settings(settings)
    known = open_lineage(settings.database_url)
    try:
        yield known, settings
    finally:
        known.close()


def _registry(settings: Settings) -> Any:
    from lineage.models import ModelRegistry

    return ModelRegistry(settings.mlflow.tracking_uri, settings.state_dir / "cache")


def _tensors(settings: Settings) -> TensorStore:
    from lineage.graph.blobs import FolderBlobs
    from lineage.graph.tensors import TensorStore

    return TensorStore(FolderBlobs(settings.state_dir / "weights"))


def _keep(known: Lineage, tensors: TensorStore, id_: VersionId, settings: Settings) -> None:
    """Has the weights of a version in the store of tensors, from MLflow where they are not there yet."""
    if tensors.has(id_):
        return
    for name, number in known.store.names(id_):
        registry = _registry(settings)
        folder = registry.fetch(registry.resolve(f"models:/{name}/{number}"))
        for file in sorted(folder.rglob("*.safetensors")):
            if tensors.put_file(file).content == id_:
                return
    raise BadRequest(
        f"the weights of {_name(known, id_)} are not to be had.",
        hint="They are kept where MLflow has a safetensors file of them; models such as trees have none.",
    )


def _document(known: Lineage, format: str, centre: VersionId | None, most: int) -> str:
    from lineage.graph.exports.documents import document
    from lineage.graph.family import nearest_family, whole_family

    family = whole_family(known.store) if centre is None else nearest_family(known.store, centre, most)
    return document(format, family, made_s=time.time(), centre=centre)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}.", hint="Choose another file.") from None


def _name(known: Lineage, id_: VersionId) -> str:
    names = known.graph().names(id_)
    return f"{names[0][0]}@{names[0][1]}" if names else id_[:12]


def _edge(known: Lineage, edge: Edge, end: VersionId) -> dict[str, Any]:
    return {
        "version": _name(known, end),
        "id": end,
        "kind": str(edge.kind),
        "params": edge.params,
        "metrics": edge.metrics,
        "made_s": edge.made_s,
    }


def _shown(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    trained = data["trained_on"]
    yield pairs(
        {
            "version": ", ".join(data["names"]),
            "id": data["id"],
            "made": _when(data["made_s"]),
            "trained on": trained and f"{trained['n_rows']:,} rows, {trained['dataset'][:12]}",
            "ancestors": str(data["n_ancestors"]),
            "descendants": str(data["n_descendants"]),
        }
    )
    for title, edges in (("Made from", data["parents"]), ("Made from it", data["children"])):
        if edges:
            rows = [(one["version"], one["kind"], _said(one["params"]), _said(one["metrics"])) for one in edges]
            yield ""
            yield grid(("version", "kind", "how", "metrics"), rows, title=title)


def _relatives(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "There are none."
        return
    yield grid(
        ("version", "id", "edges away"),
        [(one["name"], one["id"][:12], str(one["hops"])) for one in data],
        right=("edges away",),
    )


def _way(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not data["related"]:
        yield "They are not related."
        return
    if data["edges"]:
        yield grid(("parent", "kind", "child"), [(one["parent"], one["kind"], one["child"]) for one in data["edges"]])
    yield f"Nearest common ancestor: {data['nearest_common_ancestor'] or 'none'}."


def _differences(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    rows = [
        (
            one["name"],
            one["fate"],
            one["before"],
            one["after"] if one["after"] != one["before"] else "",
            "" if one["relative_l2"] is None else f"{one['relative_l2']:.3g}",
            "" if one["max_abs"] is None else f"{one['max_abs']:.3g}",
            "" if one["equal_share"] is None else f"{one['equal_share']:.1%}",
        )
        for one in data["tensors"]
    ]
    numbers = ("L2 change", "largest", "equal")
    yield grid(("tensor", "is", "before", "after", *numbers), rows, right=numbers)
    yield data["summary"]


def _claims(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "It claims no parents."
        return
    words = {True: "holds", False: "does not hold", None: "cannot be told"}
    yield grid(("kind", "claim", "because"), [(one["kind"], words[one["holds"]], one["sentence"]) for one in data])


def _affected(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield pairs({"bad": ", ".join(data["direct"]), "made from these": ", ".join(data["inherited"]) or "nothing"})
    rows = [
        (str(number), one["version"], ", ".join(f"{edge['parent']} ({edge['kind']})" for edge in one["from"]))
        for number, wave in enumerate(data["waves"], 1)
        for one in wave
    ]
    if rows:
        yield ""
        yield grid(("wave", "make again", "from"), rows, title="In this order")


def _imported(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield f"{data['n_versions']} versions read, {data['n_edges']} edges found; {data['n_new']} facts are new."
    for left_out in data["left_out"]:
        yield f"left out: {left_out}"


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at_s else ""
