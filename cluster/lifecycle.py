"""Brings the cluster up and down, and says how it is.

`up` starts a supervisor, which starts a Ray head and an MLflow server and stays; then it connects, starts Serve
without proxies (the gateway owns its sockets) and installs the catalogue and the gateway. All of it is in
`state_dir`:

    run.json          the run: its id, its settings, whether it is ready     written by up and down
    services.json     what the supervisor shall keep running                 written by up
    supervisor.json   process ids, restarts                                  written by the supervisor
    token             Ray's token, for the owner alone
    logs/             ray.log, mlflow.log, supervisor.log
    fenix.db, mlflow.db, artifacts/                                          what survives
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster import flags, processes
from cluster.head import READY
from cluster.processes import RUN_VARIABLE, ProcessId
from cluster.settings import FusionSettings, Settings, load
from cluster.supervisor import Service
from planner.errors import BadCard, ClusterDown, FenixError

if TYPE_CHECKING:
    # Importing it imports Ray, which must come after the flags.
    from deployments.applications import ChoiceOptions, Installation, Journaling
    from planner.fusion import Rules

Report = Callable[[str], None]
Install = Callable[["Installation", Report], None]

SERVICES_TIMEOUT_S = 90.0
# Sockets have paths of at most 107 bytes, and Ray adds up to 73 for its session and socket names.
_LONGEST_TEMP_DIR = 107 - 73
_KEPT_SESSIONS = 5


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that is up. `adopted`: it was up before. `took_s`: how long bringing it up took."""

    settings: Settings
    run_id: str
    adopted: bool
    took_s: float

    @property
    def addresses(self) -> dict[str, str]:
        return addresses(self.settings)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One process that the supervisor keeps: `ray`, `mlflow`."""

    name: str
    pid: int | None
    alive: bool
    n_restarts: int
    log: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """`up`: all there. `starting`: an `up` is at work. `broken`: something of it died. `down`: nothing runs."""

    state: Literal["up", "starting", "broken", "down"]
    detail: str
    run_id: str = ""
    up_for_s: float = 0.0
    services: tuple[ServiceStatus, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    n_processes: int = 0
    memory_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What `down` did. `survivors` are "pid name" of processes that did not end even when killed."""

    n_ended: int
    survivors: tuple[str, ...]
    took_s: float


def addresses(settings: Settings) -> dict[str, str]:
    """Where to reach what, by name: `http`, `grpc`, `mlflow`, `ray`, and `dashboard` where it is on."""
    found = {
        "http": settings.http_url,
        "grpc": f"{settings.reachable_host}:{settings.grpc_port}",
        "mlflow": settings.mlflow.tracking_uri,
        "ray": settings.ray.address,
    }
    if settings.ray.dashboard:
        found["dashboard"] = f"http://{settings.ray.node_ip}:{settings.ray.dashboard_port}"
    return found


def private_settings(state_dir: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings for a cluster beside others: all its state in `state_dir`, on ports that are free now, deaf to the
    environment. For demos, tests and benchmarks."""
    http, grpc, ray, mlflow, dashboard = processes.free_ports(5)
    ports = {"http_port": http, "grpc_port": grpc, "ray.port": ray, "mlflow.port": mlflow}
    ports["ray.dashboard_port"] = dashboard
    return load(environment={}, overrides={"state_dir": str(state_dir), **ports, **(overrides or {})})


def up(settings: Settings, report: Report, install: Install | None = None) -> Running:
    """Brings the cluster up and leaves it up; returns when it answers. If it is up already, says so and adopts it.

    `install` is called while this process is connected to Ray and Serve runs, and puts the catalogue and the gateway
    there; `deployments.install.install` if not given. `report` gets a line at least every 2 s.
    If this raises, everything that it started has ended.
    Raises BadCard for a setting that cannot work (a port that is taken), ClusterDown when something did not start.
    """
    started_s = time.monotonic()
    with _alone(settings, report):
        run = _read(settings, "run.json")
        if run and _is_whole(settings, run):
            report("Fenix is up already.")
            return Running(Settings.model_validate(run["settings"]), run["run_id"], True, 0.0)
        if run:
            with _step(report, "Ending what an earlier run left"):
                _end_run(settings, run)
        _check_ports(settings)
        run = {"run_id": uuid.uuid4().hex, "ready": False, "at_s": time.time(), "settings": _plain(settings)}
        _write(settings, "run.json", run)
        try:
            flags.ensure_token(settings)
            flags.apply(settings)
            with _step(report, "Starting Ray and MLflow" if settings.mlflow.is_ours else "Starting Ray"):
                _start_supervisor(settings, run["run_id"])
                imported = _import_ray()
                _wait_for(settings, "ray")
                imported.join()
            with ExitStack() as stack:
                with _step(report, "Starting Serve"):
                    stack.enter_context(connected(settings))
                    _start_serve(settings)
                if settings.mlflow.is_ours:  # it takes longest, and only what comes now needs it
                    with _step(report, "Waiting for MLflow"):
                        _wait_for(settings, "mlflow")
                with _step(report, "Starting the catalogue and the gateway"):
                    (install or _default_install())(installation(settings), report)
                    if install is None:
                        _resume_jobs(settings, report)
            run["ready"] = True
            _write(settings, "run.json", run)
        except BaseException:
            with _step(report, "Ending what was started"):
                _end_run(settings, run)
            raise
    took_s = time.monotonic() - started_s
    report(f"Fenix is up after {took_s:.1f} s.")
    return Running(settings, run["run_id"], False, took_s)


def down(settings: Settings, report: Report) -> Ended:
    """Lets running requests finish, then ends every process of the run; nothing else. Does nothing if none runs."""
    started_s = time.monotonic()
    with _alone(settings, report):
        run = _read(settings, "run.json")
        if not run:
            report("Nothing runs.")
            return Ended(0, (), 0.0)
        settings = Settings.model_validate(run["settings"])
        gateway_up = run["ready"] and processes.port_answers(settings.reachable_host, settings.http_port)
        if gateway_up and settings.gateway.drain_s > 0 and _is_whole(settings, run):
            with _step(report, "Letting running requests finish"):
                _drain(settings, run["run_id"])
        with _step(report, "Ending Serve, Ray and MLflow"):
            n_ended, survivors = _end_run(settings, run)
    took_s = time.monotonic() - started_s
    if survivors:
        report(f"{len(survivors)} processes did not end: {', '.join(survivors)}.")
    else:
        report(f"Fenix is down after {took_s:.1f} s; {n_ended} processes ended.")
    return Ended(n_ended, tuple(survivors), took_s)


def status(settings: Settings) -> ClusterStatus:
    """How the cluster of this `state_dir` is; looks at processes and ports only, and takes milliseconds."""
    run = _read(settings, "run.json")
    if not run:
        return ClusterStatus("down", "Nothing runs. Start it with `fenix up`.")
    of_run = Settings.model_validate(run["settings"])
    kept = _read(settings, "supervisor.json") or {}
    services = tuple(_service_status(service) for service in kept.get("services", []))
    members = processes.family(_supervisor(settings), run["run_id"])
    dead = [service for service in services if not service.alive]
    detail = "All there."
    state: Literal["up", "starting", "broken", "down"] = "up"
    if not members:
        state, detail = "down", "It ended without `fenix down`. `fenix up` starts it again."
    elif dead and run["ready"]:
        state, detail = "broken", f"{dead[0].name} is not running; see {dead[0].log}."
    elif not run["ready"]:
        state, detail = "starting", "An `up` is at work, or was interrupted; `fenix down` ends it."
    elif not processes.port_answers(of_run.reachable_host, of_run.http_port):
        state, detail = "broken", f"The gateway does not answer at {of_run.http_url}."
    return ClusterStatus(
        state,
        detail,
        run["run_id"],
        time.time() - run["at_s"],
        services,
        tuple(addresses(of_run).items()),
        len(members),
        processes.memory_mib(members),
    )


def running_settings(settings: Settings) -> Settings:
    """The settings that the running cluster of this `state_dir` was started with. Raises ClusterDown if none runs."""
    run = _read(settings, "run.json")
    if not run or not _is_whole(settings, run):
        raise ClusterDown(f"No cluster runs in {settings.state_dir}.", hint="Start one with `fenix up`.")
    return Settings.model_validate(run["settings"])


@contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """Ray connected to the cluster, for as long as the block runs. Inside another such block it does nothing.

    Raises ClusterDown if the head does not answer.
    """
    flags.apply(settings)
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    from deployments.actors import NAMESPACE

    if ray.is_initialized():
        yield
        return
    if not processes.port_answers(settings.ray.node_ip, settings.ray.port):
        raise ClusterDown(f"No Ray head answers at {settings.ray.address}.", hint="Start one with `fenix up`.")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    AuthenticationTokenLoader.instance().reset_cache()  # this process may have met another cluster before
    try:
        ray.init(
            address=settings.ray.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=str(ray_temp_dir(settings)),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterDown(
            f"The Ray head at {settings.ray.address} refused: {error}", hint="See logs/ray.log in state_dir."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def installation(settings: Settings) -> Installation:
    """What `deployments` needs of the settings."""
    from deployments.applications import Installation
    from deployments.gateway.limits import Limits

    limits = settings.gateway
    return Installation(
        database_url=settings.database_url,
        mlflow_uri=settings.mlflow.tracking_uri,
        cache_dir=str(settings.state_dir / "cache"),
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        gateways=limits.replicas,
        sentence_model=settings.sentence_model,
        limits=Limits(
            max_body_bytes=limits.max_body_mib << 20,
            max_rows=limits.max_rows,
            max_concurrent=limits.max_concurrent,
            read_timeout_s=limits.read_timeout_s,
        ),
        hedge_share=limits.hedge_share,
        fusion=_fusion(settings.fusion),
        journal=_journaling(settings),
        choice=_choice(settings),
    )


def _journaling(settings: Settings) -> Journaling | None:
    from deployments.applications import Journaling

    journal = settings.journal
    if not journal.enabled:
        return None
    return Journaling(
        folder=str(settings.state_dir / "spool"),
        keep_s=journal.keep_days * 86_400.0,
        sample_share=journal.sample_share,
        spool_bytes=journal.spool_mib << 20,
    )


def _choice(settings: Settings) -> ChoiceOptions:
    from deployments.applications import ChoiceOptions

    choice = settings.choice
    return ChoiceOptions(choice.policy, choice.share, choice.burst, str(choice.weights or ""))


def _fusion(settings: FusionSettings) -> Rules | None:
    from planner.fusion import Rules

    if not settings.enabled:
        return None
    return Rules(
        min_per_s=settings.min_per_s,
        window_s=settings.window_s,
        min_saving=settings.min_saving,
        unused_s=settings.unused_s,
        most=settings.max_fused,
        compiled=settings.compiled,
    )


def ray_temp_dir(settings: Settings) -> Path:
    """The folder of Ray's sockets: the setting, or `state_dir/ray`, or a short private one where that is too long.

    Raises BadCard if the setting is too long for the sockets in it.
    """
    given = settings.ray.temp_dir
    if given is not None:
        if len(str(given)) > _LONGEST_TEMP_DIR:
            raise BadCard(
                f"ray.temp_dir = '{given}' is too long: sockets need a path of at most {_LONGEST_TEMP_DIR} characters.",
                hint="Set ray.temp_dir to a shorter folder.",
            )
        return given
    own = settings.state_dir / "ray"
    if len(str(own)) <= _LONGEST_TEMP_DIR:
        return own
    digest = sha256(f"{os.getuid()} {settings.state_dir}".encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"fenix-{digest}" / "ray"


# --- steps of up and down


def _check_ports(settings: Settings) -> None:
    for key, host, port in settings.ports():
        if not processes.port_is_free(host, port):
            raise BadCard(
                f"{key} = {port}: something listens on {host}:{port} already, or the address is not this machine's.",
                hint=f"End it, or choose another port: FENIX_{key.upper().replace('.', '__')}={port + 10}.",
            )


def _start_supervisor(settings: Settings, run_id: str) -> None:
    logs = settings.state_dir / "logs"
    logs.mkdir(exist_ok=True)
    for old in logs.glob("*.log"):
        old.replace(old.with_suffix(".log.previous"))
    temp_dir = ray_temp_dir(settings)
    _make_private(temp_dir.parent)
    sessions = sorted(temp_dir.glob("session_2*"), key=lambda path: path.name)
    for session in sessions[:-_KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    services = [Service("ray", _ray_command(settings, temp_dir), str(logs / "ray.log"), restart=False)]
    if settings.mlflow.is_ours:
        services.append(Service("mlflow", _mlflow_command(settings), str(logs / "mlflow.log"), restart=True))
    _write(settings, "services.json", [_service_json(service) for service in services])
    (settings.state_dir / "supervisor.json").unlink(missing_ok=True)
    with (logs / "supervisor.log").open("wb") as log:
        # The child puts its own child into the background and ends at once.
        subprocess.run(
            [sys.executable, "-m", "cluster.supervisor", str(settings.state_dir)],
            env=flags.environment(settings) | {RUN_VARIABLE: run_id},
            cwd=settings.state_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )


def _service_json(service: Service) -> dict[str, Any]:
    return {"name": service.name, "command": service.command, "log": service.log, "restart": service.restart}


def _ray_command(settings: Settings, temp_dir: Path) -> list[str]:
    ray = settings.ray
    parameters = {
        "node_ip_address": ray.node_ip,
        "gcs_server_port": ray.port,
        "temp_dir": str(temp_dir),
        "include_dashboard": ray.dashboard,
        "dashboard_host": ray.node_ip,
        "dashboard_port": ray.dashboard_port,
        # Ray would take fixed ports for these, and two clusters on one machine would collide.
        "dashboard_agent_listen_port": 0,
        "min_worker_port": 0,
        "max_worker_port": 0,
        "num_cpus": ray.num_cpus,
        "num_gpus": ray.num_gpus,
        "object_store_memory": ray.object_store_mib << 20 if ray.object_store_mib else None,
        "include_log_monitor": False,  # it would send replicas' prints to drivers; they are in the logs
        "no_monitor": ray.is_loopback,  # the autoscaler's: no machine joins
    }
    return [sys.executable, "-m", "cluster.head", json.dumps(parameters)]


def _mlflow_command(settings: Settings) -> list[str]:
    mlflow = settings.mlflow
    return [sys.executable, "-m", "cluster.mlflow_server", str(settings.state_dir), mlflow.host, str(mlflow.port)]


def _import_ray() -> threading.Thread:
    """Imports Ray and Serve while the head starts: 2 s that would otherwise come after it."""

    def work() -> None:
        import ray.serve  # noqa: F401

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _wait_for(settings: Settings, name: Literal["ray", "mlflow"]) -> None:
    """Returns when that service answers. Raises ClusterDown with the end of the log of any that died meanwhile."""
    deadline_s = time.monotonic() + SERVICES_TIMEOUT_S
    log = settings.state_dir / "logs" / f"{name}.log"
    while not (_ray_answers(log) if name == "ray" else _mlflow_answers(settings)):
        for service in (_read(settings, "supervisor.json") or {}).get("services", []):
            if service["exit_status"] is not None:
                _raise_dead(service["name"], Path(service["log"]), f"ended with status {service['exit_status']}")
        supervisor = _supervisor(settings)
        if supervisor is not None and not supervisor.is_alive():
            _raise_dead("supervisor", log.with_name("supervisor.log"), "has ended")
        if time.monotonic() > deadline_s:
            _raise_dead(name, log, f"did not answer within {SERVICES_TIMEOUT_S:.0f} s")
        time.sleep(0.05)


def _ray_answers(log: Path) -> bool:
    return log.exists() and READY in log.read_text(errors="replace")


def _raise_dead(name: str, log: Path, what: str) -> None:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    # Lines that begin with a space are the frames of a trace; the reason is among the others.
    end = "\n  ".join([line for line in lines if line.strip() and not line.startswith(" ")][-6:])
    raise ClusterDown(f"{name} {what}. The end of its log:\n  {end}\n", hint=f"The whole log is {log}.")


def _mlflow_answers(settings: Settings) -> bool:
    if not processes.port_answers(settings.mlflow.host, settings.mlflow.port):
        return False
    try:
        with urllib.request.urlopen(f"{settings.mlflow.tracking_uri}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _start_serve(settings: Settings) -> None:
    from ray import serve

    serve.start(
        proxy_location="Disabled",
        logging_config={"log_level": settings.log_level.upper(), "enable_access_log": False},
    )


def _resume_jobs(settings: Settings, report: Report) -> None:
    from cluster.jobs.actor import resume_jobs

    if resume_jobs(settings):
        report("looking after jobs and schedules")


def _default_install() -> Install:
    from deployments.install import install

    return install


def _drain(settings: Settings, run_id: str) -> None:
    """Has Serve end the gateway, which finishes its requests. In a process of its own: a dying Ray can hang us."""
    code = "import sys; from cluster.lifecycle import drain_gateway; drain_gateway(sys.argv[1])"
    timeout_s = settings.gateway.drain_s + 10.0
    command = [sys.executable, "-c", code, str(settings.state_dir)]
    # It has the run's mark, so that whatever happens it ends with the run.
    environment = flags.environment(settings) | {RUN_VARIABLE: run_id}
    try:
        subprocess.run(command, env=environment, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return


def drain_gateway(state_dir: str) -> None:
    """Ends the gateway's application and returns when its requests are answered; nothing if there is none."""
    run = json.loads((Path(state_dir) / "run.json").read_text())
    with connected(Settings.model_validate(run["settings"])):
        from ray import serve

        from deployments.gateway.app import APPLICATION

        if APPLICATION in serve.status().applications:
            serve.delete(APPLICATION)


def _end_run(settings: Settings, run: dict[str, Any]) -> tuple[int, list[str]]:
    """Ends the supervisor, which ends its services in order, then whatever is left. Forgets the run if all ended."""
    leader, run_id = _supervisor(settings), run["run_id"]
    members = processes.family(leader, run_id)
    supervisor = leader.process() if leader else None
    if supervisor is not None:
        processes.end([supervisor], grace_s=20.0)
    left = processes.end(processes.family(leader, run_id), grace_s=1.0)
    if not left:
        for name in ("run.json", "services.json", "supervisor.json"):
            (settings.state_dir / name).unlink(missing_ok=True)
    return len(members) - len(left), [f"{process.pid} {process.name()}" for process in left]


# --- what is on disk


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _read(settings: Settings, name: str) -> Any:
    try:
        return json.loads((settings.state_dir / name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write(settings: Settings, name: str, content: Any) -> None:
    path = settings.state_dir / name
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)  # the settings may hold a database password
    beside.write_text(json.dumps(content, indent=1))
    os.replace(beside, path)


def _make_private(folder: Path) -> None:
    """Makes a folder that only the owner can look into. Raises BadCard if it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BadCard(f"{folder} belongs to another user.", hint="Set state_dir or ray.temp_dir to one of your own.")


def _supervisor(settings: Settings) -> ProcessId | None:
    kept = _read(settings, "supervisor.json") or {}
    return ProcessId(**kept["supervisor"]) if kept.get("supervisor") else None


def _service_status(service: dict[str, Any]) -> ServiceStatus:
    process = ProcessId(**service["process"]) if service["process"] else None
    alive = process is not None and process.is_alive()
    return ServiceStatus(
        service["name"], process.pid if process else None, alive, service["n_restarts"], service["log"]
    )


def _is_whole(settings: Settings, run: dict[str, Any]) -> bool:
    """Whether the run is ready and its supervisor and head live. (MLflow may be between two starts.)"""
    leader = _supervisor(settings)
    if not run["ready"] or leader is None or not leader.is_alive():
        return False
    services = (_read(settings, "supervisor.json") or {}).get("services", [])
    return all(_service_status(service).alive for service in services if service["name"] == "ray")


@contextmanager
def _alone(settings: Settings, report: Report) -> Iterator[None]:
    """Holds the lock of `state_dir`, so that two `up`s or an `up` and a `down` take turns."""
    _make_private(settings.state_dir)
    with (settings.state_dir / "lock").open("w") as lock, ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stack.enter_context(_step(report, "Waiting for another `fenix up` or `fenix down`"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            stack.close()
        yield


@contextmanager
def _step(report: Report, title: str) -> Iterator[None]:
    """Reports a step when it begins, every 2 s while it lasts, and when it is done."""
    started_s = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(2.0):
            report(f"  {title}: {time.monotonic() - started_s:.0f} s")

    report(f"{title} ...")
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    except FenixError:
        raise
    except Exception as error:
        raise ClusterDown(f"{title}: {type(error).__name__}: {error}", hint="See the logs in state_dir.") from error
    finally:
        done.set()
        ticker.join()
