"""Settings: parsed once at the edge into one frozen, closed model, and passed down. Nobody else reads the environment.

Four sources, each beating the one before: the defaults below, a YAML file, `FENIX_*` in the environment
(`FENIX_HTTP_PORT`, and two underscores for a section: `FENIX_RAY__PORT`), and overrides from the command line
(`ray.port=6400`). The defaults are one machine that needs nothing but the Python packages; the same keys point a
real cluster at its own Ray, MLflow and database.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.errors import BadCard, near

PREFIX = "FENIX_"
FILE_VARIABLE = "FENIX_SETTINGS"

Port = Annotated[int, Field(ge=1, le=65535)]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Address = Annotated[str, AfterValidator(lambda text: str(ip_address(text)))]


class Section(BaseModel):
    """Closed and frozen: an unknown key is an error, and a setting never changes while the cluster runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RaySettings(Section):
    """The Ray head that `fenix up` starts."""

    node_ip: Address = Field(default="127.0.0.1", description="Address of Ray's processes; a real one lets nodes join.")
    port: Port = Field(default=6379, description="Port of the head (its control store).")
    dashboard: bool = Field(
        default=False, description="Whether to run Ray's dashboard and its jobs API (about 0.9 GB)."
    )
    dashboard_port: Port = Field(default=8265, description="Port of the dashboard, on node_ip.")
    num_cpus: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="CPUs to offer; all of them if not set."
    )
    num_gpus: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="GPUs to offer; all of them if not set."
    )
    object_store_mib: Annotated[int, Field(ge=80)] | None = Field(
        default=None, description="Shared memory for large tensors, in MiB; 30 % of the memory if not set."
    )
    temp_dir: Folder | None = Field(
        default=None, description="Folder of Ray's sockets and logs; must be short. Chosen from state_dir if not set."
    )

    @property
    def address(self) -> str:
        return f"{self.node_ip}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ip_address(self.node_ip).is_loopback


class MlflowSettings(Section):
    """The model registry: the server that `fenix up` starts, or another by `tracking_uri`."""

    host: str = Field(default="127.0.0.1", description="Where the MLflow server listens.")
    port: Port = Field(default=5000, description="Port of the MLflow server.")
    tracking_uri: str = Field(
        default_factory=lambda data: f"http://{data.get('host')}:{data.get('port')}",
        description="The MLflow server to use; another than http://host:port means that none is started.",
    )

    @property
    def is_ours(self) -> bool:
        """Whether `fenix up` starts the server."""
        return self.tracking_uri == f"http://{self.host}:{self.port}"


class GatewaySettings(Section):
    """How many gateways there are, and what they accept."""

    replicas: Annotated[int, Field(ge=1)] = Field(default=1, description="Gateway processes; they share the ports.")
    max_body_mib: Annotated[int, Field(ge=1, le=2048)] = Field(default=64, description="Largest request body, in MiB.")
    max_rows: Annotated[int, Field(ge=1)] = Field(default=16_384, description="Most rows in one request.")
    max_concurrent: Annotated[int, Field(ge=1)] = Field(
        default=4096, description="Most requests at once in one gateway; more are turned away."
    )
    read_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="How long a client may pause while it sends a request."
    )
    hedge_share: Annotated[float, Field(ge=0, le=0.2)] = Field(
        default=0.03, description="Most calls that are sent twice because the first takes long; 0 for none."
    )
    drain_s: Annotated[float, Field(ge=0)] = Field(
        default=15.0, description="How long `fenix down` waits at most for running requests; 0 ends them at once."
    )


class FusionSettings(Section):
    """Whether and how readily chains of extensions that run all the time are put into one deployment."""

    enabled: bool = Field(default=True, description="Whether chains are fused at all.")
    min_per_s: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="How often a second a chain has to run, over the whole window."
    )
    window_s: Annotated[float, Field(ge=1)] = Field(default=60.0, description="How long a chain has to be that busy.")
    min_saving: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="Share of a chain's time that fusing it has to save."
    )
    unused_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0, description="A fused extension that is hardly used for so long is removed."
    )
    max_fused: Annotated[int, Field(ge=0)] = Field(default=4, description="Most fused extensions at a time.")
    compiled: bool = Field(
        default=False,
        description="Whether parts that own their cores or a GPU become compiled graphs, which spin, idle or not.",
    )


class JournalSettings(Section):
    """What is kept of the requests that were answered, for feedback and for learning."""

    enabled: bool = Field(default=True, description="Whether outcomes are recorded; without, there is no feedback.")
    keep_days: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="How long outcomes and feedback are kept."
    )
    sample_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Share of the requests whose inputs are kept too; never those of tagged data."
    )
    spool_mib: Annotated[int, Field(ge=1)] = Field(
        default=1024, description="Disk for outcomes that wait while the database is away, in MiB per gateway."
    )


class ChoiceSettings(Section):
    """Who chooses among the plans for a goal. Counts where a journal is kept; without, it is the planner's first."""

    policy: Literal["thompson", "greedy", "exp3", "exp4", "controller", "first"] = Field(
        default="thompson",
        description="How plans are chosen: by how likely each is the best; the best known and trials by chance; "
        "Exp3 or Exp4, for worlds that follow no distribution; by a trained controller; or the planner's first.",
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Most requests of a goal that try what is not believed to be the best."
    )
    burst: Annotated[float, Field(ge=0)] = Field(
        default=12.0, description="Requests of a goal, for each of its plans, that may try others before that counts."
    )
    weights: Folder | None = Field(default=None, description="The controller's weights, a safetensors file.")

    @model_validator(mode="after")
    def _weights_for_the_controller(self) -> ChoiceSettings:
        if self.policy == "controller" and self.weights is None:
            raise ValueError("choice.policy is controller, and choice.weights names no file")
        return self


class JobsSettings(Section):
    """What runs beside serving: repair, reports, clean-up."""

    most: Annotated[int, Field(ge=1)] = Field(default=1, description="Most jobs that run at once.")


class Settings(Section):
    """Everything that can be set. `model_dump(mode="json")` is the plain dictionary that the layers below get."""

    state_dir: Folder = Field(
        default=Path("~/.fenix").expanduser(), description="Databases, models, logs and the token."
    )
    host: str = Field(default="127.0.0.1", description="Where the gateway listens; 0.0.0.0 for all interfaces.")
    http_port: Port = Field(default=8000, description="The gateway's HTTP port.")
    grpc_port: Port = Field(default=8001, description="The gateway's gRPC port.")
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data.get('state_dir')}/fenix.db",
        description="SQLAlchemy URL of the database; SQLite under state_dir if not set.",
    )
    import_paths: tuple[Folder, ...] = Field(
        default=(), description="Folders that extensions' own modules are imported from."
    )
    sentence_model: str = Field(
        default="",
        description="A sentence-transformers model, path or name (extra `sentences`); built-in matcher if not set.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="How much the logs say."
    )
    ray: RaySettings = RaySettings()
    mlflow: MlflowSettings = MlflowSettings()
    gateway: GatewaySettings = GatewaySettings()
    fusion: FusionSettings = FusionSettings()
    journal: JournalSettings = JournalSettings()
    choice: ChoiceSettings = ChoiceSettings()
    jobs: JobsSettings = JobsSettings()

    @model_validator(mode="after")
    def _ports_differ(self) -> Settings:
        seen: dict[int, str] = {}
        for key, _, port in self.ports():
            if port in seen:
                raise ValueError(f"{key} and {seen[port]} are both {port}; two servers cannot share a port")
            seen[port] = key
        return self

    def ports(self) -> list[tuple[str, str, int]]:
        """(setting, host, port) of everything that listens on a port of its own choice in this configuration."""
        ports = [
            ("http_port", self.host, self.http_port),
            ("grpc_port", self.host, self.grpc_port),
            ("ray.port", self.ray.node_ip, self.ray.port),
        ]
        if self.ray.dashboard:
            ports.append(("ray.dashboard_port", self.ray.node_ip, self.ray.dashboard_port))
        if self.mlflow.is_ours:
            ports.append(("mlflow.port", self.mlflow.host, self.mlflow.port))
        return ports

    @property
    def reachable_host(self) -> str:
        """The host to dial from this machine: loopback when the gateway listens on all interfaces."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def http_url(self) -> str:
        return f"http://{self.reachable_host}:{self.http_port}"


def known_keys() -> dict[str, str]:
    """Every setting's dotted key with its description, in the order of the models."""
    return dict(_keys(Settings, ""))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info.description or ""


def load(
    file: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings from the file (or the one that FENIX_SETTINGS names), the environment and dotted `overrides`.

    Raises BadCard, which names the file and line, variable or option at fault, and the nearest right key.
    """
    file = file or environment.get(FILE_VARIABLE)
    values: dict[str, tuple[Any, str]] = {}
    if file:
        values.update(_from_file(Path(file).expanduser()))
    for name in sorted(environment):
        if name.startswith(PREFIX) and name != FILE_VARIABLE:
            values[name.removeprefix(PREFIX).lower().replace("__", ".")] = (environment[name], f"environment, {name}")
    for key, value in (overrides or {}).items():
        values[key] = (value, f"option {key}")

    keys = known_keys()
    nested: dict[str, Any] = {}
    for key, (value, origin) in values.items():
        if key not in keys:
            raise BadCard(f"{origin}: there is no setting {key!r}.", hint=_nearest(key, keys))
        *sections, leaf = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value.split(os.pathsep) if key == "import_paths" and isinstance(value, str) else value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise BadCard(
            _explain(error, values, keys), hint="configs/local.yaml has every setting with its default."
        ) from None


def _nearest(key: str, keys: Mapping[str, str]) -> str:
    """The right key by the whole path, or by its last part where only the section is missing or wrong."""
    leaf = key.rpartition(".")[2]
    same_leaf = [known for known in keys if known.rpartition(".")[2] == leaf]
    return f"Nearest: {', '.join(same_leaf)}." if same_leaf else near(key, keys)


def _explain(error: ValidationError, values: Mapping[str, tuple[Any, str]], keys: Mapping[str, str]) -> str:
    found = error.errors(include_url=False)[0]
    parts = [str(part) for part in found["loc"]]
    key = next((k for n in range(len(parts), 0, -1) if (k := ".".join(parts[:n])) in keys), "")
    what = found["msg"].removeprefix("Value error, ")
    what = what[0].lower() + what[1:] + ("" if what.endswith(".") else ".")
    if not key:
        return f"The settings contradict each other: {what}"
    value, origin = values.get(key, (found["input"], "default"))
    return f"{origin}: {key} = {str(value)[:80]!r} does not do: {what}"


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    """Dotted key -> (value, "file, line n"). An empty section counts as absent."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadCard(f"{path}: cannot be read: {error}.", hint="Give the path of a YAML file.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return dict(_leaves(root, "", path)) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadCard(f"{path}, line {line}: not YAML: {error.problem}.") from None


def _leaves(node: yaml.Node, prefix: str, path: Path) -> Iterator[tuple[str, tuple[Any, str]]]:
    if not isinstance(node, yaml.MappingNode):
        where = f"{path}, line {node.start_mark.line + 1}"
        what = f"{prefix.rstrip('.')} is a section" if prefix else "settings are written"
        raise BadCard(f"{where}: {what}; write `key: value` lines.")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = f"{prefix}{key_node.value}"
        if key in seen:
            raise BadCard(f"{where}: {key!r} is set twice.", hint="Keep one of the two.")
        seen.add(key)
        value = _value(value_node)
        if key in {"ray", "mlflow", "gateway", "fusion", "journal", "choice", "jobs"}:
            if value is not None:
                yield from _leaves(value_node, f"{key}.", path)
        else:
            yield key, (value, where)


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
