"""Several extensions as one compiled graph of Ray: an actor for each, with its own resources, wired by shared memory.

For parts that own their cores or a GPU. Branches run side by side, and a batch goes from part to part in about a
quarter of a millisecond, without a call through Ray. The price: every actor keeps a core busy, idle or not.

The parts are run by the same `run_part` as in `fused.py`, so the answers are the same bit for bit. Errors of a part
travel through the graph as values. What Ray itself cannot carry on with (an actor has died, no answer in time) breaks
the graph for good: the replica then ends itself, its actors end with it, and Serve starts another.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray.dag import InputNode
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from deployments.extension import Extension, Result
from deployments.kinds.fused import FusedExtension, Made, answer, run_part
from planner.cards import Resources
from planner.errors import ExtensionRaised, ExtensionUnavailable, FenixError
from planner.features import Array, Rows
from planner.plans import REQUEST, Step, StepId
from planner.progress import needs
from planner.wiring import Group

ROOM_TIMEOUT_S = 60.0  # for a node that has room for all parts
START_TIMEOUT_S = 180.0  # for the parts to load
RUN_TIMEOUT_S = 120.0  # for one batch: as long as a replica may be busy with one
CLOSE_TIMEOUT_S = 5.0  # for the parts to give back what they took
LAST_WORDS_S = 1.0  # that a broken replica has to send its last answers
_log = logging.getLogger("fenix.compiled")

Given = Mapping[str, Rows] | FenixError  # what a part hands on


class CompiledExtension(FusedExtension):
    """A group of parts, of which nothing is loaded in this process. One batch at a time."""

    def __init__(self, group: Group, mlflow_uri: str = "", cache_dir: str = "") -> None:
        super().__init__(group, ())
        self._where = mlflow_uri, cache_dir
        self._actors: list[Any] = []
        self._room: Any = None
        self._graph: Any = None
        self._ended = ""  # why it does not answer any more

    def setup(self) -> None:
        """Starts the parts, all on one node, and compiles the graph.

        Raises ExtensionUnavailable when there is no room for them or they do not start in time, and what loading a
        part raises; then nothing is left behind.
        """
        try:
            self._room = _room(self._group)
            for step in self._group.steps:
                place = _place(self._group, step, self._room)
                self._actors.append(ray.remote(PartActor).options(**place).remote(self._group, step.id, *self._where))
            for failure in self._told("start", START_TIMEOUT_S):
                if failure is not None:
                    raise failure
            self._graph = _compiled(self._group, self._actors)
        except BaseException:
            with contextlib.suppress(FenixError):
                self.close()
            raise
        loops = list(self._graph.worker_task_refs.values())
        threading.Thread(target=self._watch, args=(loops,), name="parts", daemon=True).start()

    def infer(self, *_: Any, **inputs: Any) -> Result:
        if self._ended:
            raise self._unavailable()
        given = {name: Rows(values) for name, values in inputs.items()}
        try:
            last: Given = _own(self._graph.execute(given).get(timeout=RUN_TIMEOUT_S))
        except Exception as error:  # of Ray, which raises plain ones too
            late = isinstance(error, ray.exceptions.RayChannelTimeoutError)
            self._break(f"nothing came back within {RUN_TIMEOUT_S:.0f} s" if late else _brief(error))
            raise self._unavailable() from error
        if isinstance(last, FenixError):
            raise last
        return answer(last)

    def close(self) -> None:
        """Closes the parts and ends their actors. Then raises what the last one raised that could not be closed."""
        self._ended = self._ended or "it is closed"
        failure: FenixError | None = None
        try:
            for told in self._told("close", CLOSE_TIMEOUT_S):
                failure = told or failure
        except ExtensionUnavailable as error:
            failure = error
        # It would tell of every actor that is ended here, with a trace.
        logging.getLogger("ray.dag.compiled_dag_node").setLevel(logging.CRITICAL)
        # The actors first: `teardown` waits 30 s for each whose channels have grown, and spares them once one has died.
        for actor in self._actors:
            ray.kill(actor)
        if self._graph is not None:
            self._graph.teardown(kill_actors=True)
            with contextlib.suppress(Exception):
                ray.kill(self._graph._proxy_actor)  # otherwise it lives until the graph is collected
        if self._room is not None:
            remove_placement_group(self._room)
        self._actors, self._graph, self._room = [], None, None
        if failure is not None:
            raise failure

    def _samples_of(self, part: StepId, n_rows: int, seed: int) -> dict[str, Array]:
        try:
            made: dict[str, Array] | FenixError = ray.get(
                self._actors[part].samples.remote(n_rows, seed), timeout=RUN_TIMEOUT_S
            )
        except ray.exceptions.RayError as error:
            raise ExtensionUnavailable(f"{self._group.cards[part].id} gave no samples ({_brief(error)}).") from error
        if isinstance(made, FenixError):
            raise made
        return made

    def _told(self, method: str, timeout_s: float) -> list[FenixError | None]:
        """What that method of each part returns. Raises ExtensionUnavailable."""
        try:
            answers: list[FenixError | None] = ray.get(
                [getattr(actor, method).remote() for actor in self._actors], timeout=timeout_s
            )
        except ray.exceptions.RayError as error:
            raise ExtensionUnavailable(f"a part of {self.name} did not {method} ({_brief(error)}).") from error
        return answers

    def _watch(self, loops: list[Any]) -> None:
        """Runs on a thread of its own. Returns when the loop of some part has ended: it runs as long as its actor."""
        while not self._ended:
            if ray.wait(loops, num_returns=1, timeout=60.0)[0]:
                self._break("one of them has died")

    def _break(self, why: str) -> None:
        """Notes that the graph is of no more use, and soon ends the actor that this runs in, if it does.

        Sooner than Serve would, which takes three failed health checks to give a replica up.
        """
        if not self._ended:
            self._ended = why
            _log.error("%s is broken: %s", self.name, why)
            with contextlib.suppress(RuntimeError):  # not in an actor
                me = ray.get_runtime_context().current_actor
                timer = threading.Timer(LAST_WORDS_S, ray.kill, (me,))
                timer.daemon = True
                timer.start()

    def _unavailable(self) -> ExtensionUnavailable:
        return ExtensionUnavailable(f"the parts of {self.name} do not answer: {self._ended}.", hint="Send it again.")


class PartActor:
    """One part of a compiled graph. Its methods return errors as values."""

    def __init__(self, group: Group, number: StepId, mlflow_uri: str, cache_dir: str) -> None:
        self._group = group
        self._step = group.steps[number]
        self._givers = _givers(self._step)
        self._where = mlflow_uri, cache_dir
        self._part: Extension | None = None

    def start(self) -> FenixError | None:
        """Loads the part and sets it up."""
        from deployments.loading import load  # which knows this module

        mlflow_uri, cache_dir = self._where
        card = self._group.cards[self._step.id]
        try:
            self._part = load(card, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
            self._part.setup()
        except Exception as error:
            return self._error("starting it", error)
        return None

    def run(self, *given: Given) -> Given:
        """What the part makes of what its givers made, in the order of `_givers`; or the first error among that."""
        try:
            made: Made = {}
            for giver, rows in zip(self._givers, given, strict=True):
                if isinstance(rows, FenixError):
                    return rows
                made[giver] = _own(rows)
            return run_part(self._group, self._step, self._loaded(), made)
        except Exception as error:
            return self._error("running it", error)

    def samples(self, n_rows: int, seed: int) -> dict[str, Array] | FenixError:
        try:
            return self._loaded().samples(n_rows, np.random.default_rng(seed))
        except Exception as error:
            return self._error("making samples", error)

    def close(self) -> FenixError | None:
        try:
            if self._part is not None:
                self._part.close()
        except Exception as error:
            return self._error("closing it", error)
        return None

    def _loaded(self) -> Extension:
        if self._part is None:
            raise ExtensionUnavailable(f"{self._step.extension} is not loaded.")
        return self._part

    def _error(self, doing: str, error: Exception) -> FenixError:
        if not isinstance(error, FenixError):
            text = f"{self._step.extension}: {doing} raised {type(error).__name__}: {error}"
            return ExtensionRaised(text)
        error.__cause__ = error.__context__ = None  # their frames hold rows in shared memory
        return error.with_traceback(None)


def _givers(step: Step) -> tuple[StepId, ...]:
    """Whose rows a part takes, in the order in which the graph hands them over."""
    return tuple(sorted(needs(step)))


def _own(given: Any) -> Any:
    """The rows in memory of our own: Ray writes the next batch where they lie, and waits while somebody holds them."""
    if isinstance(given, FenixError):
        return given
    return {
        name: Rows(rows.values.copy(order="K"), None if rows.confidence is None else rows.confidence.copy())
        for name, rows in given.items()
    }


def _compiled(group: Group, actors: list[Any]) -> Any:
    """The compiled graph. `execute` takes the rows by input of the whole; what it gives is what the last part made."""
    with InputNode() as request:
        nodes: dict[StepId, Any] = {REQUEST: request}
        for step, actor in zip(group.steps, actors, strict=True):
            nodes[step.id] = actor.run.bind(*(nodes[giver] for giver in _givers(step)))
    return nodes[group.steps[-1].id].experimental_compile(_max_inflight_executions=1)


def _demand(needs: Resources) -> dict[str, float]:
    """Resources in the words of placement groups, without those that are not needed."""
    demand = {"CPU": needs.num_cpus, "GPU": needs.num_gpus, "memory": float(needs.memory_mib << 20)}
    return {name: amount for name, amount in demand.items() if amount > 0}


def _room(group: Group) -> Any:
    """Room for all parts on one node, this one if it has it; None where they need nothing.

    Raises ExtensionUnavailable when no node has it in time. It is given back when this process ends.
    """
    bundles = [demand for card in group.cards if (demand := _demand(card.resources))]
    if not bundles:
        return None
    here = ray.get_runtime_context().get_node_id()
    room = placement_group(bundles, strategy="STRICT_PACK", _soft_target_node_id=here)
    if not room.wait(ROOM_TIMEOUT_S):
        remove_placement_group(room)
        total: dict[str, float] = {}
        for bundle in bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in total.items())
        raise ExtensionUnavailable(
            f"no node has room for all parts ({wanted}) within {ROOM_TIMEOUT_S:.0f} s.",
            hint="Add a node, or leave the parts in deployments of their own.",
        )
    return room


def _place(group: Group, step: Step, room: Any) -> dict[str, Any]:
    """Ray's options for the actor of a part."""
    resources = group.cards[step.id].resources
    if room is None:
        where: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    else:
        demanding = [other.id for other in group.steps if _demand(group.cards[other.id].resources)]
        bundle = demanding.index(step.id) if step.id in demanding else -1
        where = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=bundle)
    options: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "max_restarts": 0,
        "scheduling_strategy": where,
    }
    if resources.memory_mib:
        options["memory"] = resources.memory_mib << 20
    return options


def _brief(error: Exception) -> str:
    """Ray's messages go on for pages."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}"[:200] if line else type(error).__name__
