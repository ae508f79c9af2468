"""Trains the learned policy: PPO on the simulator, with Ray RLlib (`pip install fenix-serve[training]`).

`python -m planner.policies.training --minutes 10` writes `learned.json` beside this file. It trains on extensions,
arrivals and deadlines drawn anew for every episode, not on the scenarios of the suite.
Source of the method: Schulman et al. 2017, Proximal Policy Optimization Algorithms.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.policies.learned import N_ACTIONS, N_FEATURES, WEIGHTS, features, wish
from planner.policies.policy import BatchPolicy, QueueState
from planner.policies.scenarios import Kind, Scenario, diurnal, modulated, poisson
from planner.policies.simulation import Service, Simulation

_ROWS_PER_EPISODE = 4000
_HIDDEN = (24, 24)


class Told(BatchPolicy):
    """Does what it is told, within the rules that hold for every policy."""

    name = "told"
    action = 0

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return wish(self.action, state, self.times) if self.times.n_calls else (state.max_rows, 0.0)


def random_scenario(rng: random.Random) -> Scenario:
    """An extension and its clients, as different as they come."""

    def between(least: float, most: float) -> float:
        return math.exp(rng.uniform(math.log(least), math.log(most)))

    fixed_ms = between(1.0, 10.0)
    per_row_ms = fixed_ms * between(0.005, 0.25)
    n_slots = rng.choice((1, 1, 2, 2, 4))
    max_rows = rng.choice((16, 32, 64, 64, 128))
    service = Service(
        fixed_ms,
        per_row_ms,
        noise=rng.uniform(0.02, 0.35),
        tail_share=rng.choice((0.0, 0.0, 0.02)),
        tail_factor=rng.uniform(2.0, 5.0),
        contention=rng.choice((0.0, rng.uniform(0.0, 1.0))) if n_slots > 1 else 0.0,
    )
    deadline_ms = (fixed_ms + per_row_ms * max_rows) * between(1.5, 8.0) * (1.0 + service.contention * (n_slots - 1))
    usual = Kind(1.0, (1,), 1.0, deadline_ms)
    kinds: tuple[Kind, ...] = (usual,)
    if rng.random() < 0.4:
        share = rng.uniform(0.1, 0.5)
        hasty = Kind(share, (1,), rng.uniform(0.3, 1.0), deadline_ms * between(0.15, 0.6))
        slow = Kind((1.0 - share) * 0.2, (1, 2), rng.uniform(1.0, 4.0), deadline_ms * rng.uniform(1.0, 3.0))
        kinds = (hasty, slow, Kind((1.0 - share) * 0.8, (1, 2, 4), rng.uniform(0.5, 1.0), deadline_ms))
    return Scenario("random", service, n_slots, max_rows, rng.choice((poisson, modulated, diurnal)), kinds)


class Game:
    """One episode is one workload; one step is one decision in which there is a choice. Needs no RLlib.

    The reward of a step is minus the rows that came too late or were dropped in it, and minus 0.15 times the answered
    requests, weighted by the share of their deadline that they took; all by a quarter of the largest batch.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._policy = Told()
        self._simulation: Simulation
        self._state: QueueState
        self._deadline_ms = 1.0
        self._n_missed = self._n_answered = 0

    def reset(self) -> npt.NDArray[np.float32]:
        """A new workload; gives what there is to see, shape (N_FEATURES,)."""
        rng = self._rng
        while True:
            scenario = random_scenario(rng)
            workload = scenario.workload(rng.uniform(0.4, 1.4), _ROWS_PER_EPISODE, rng.getrandbits(32))
            self._policy = Told()
            self._simulation = Simulation(workload, self._policy, rng.getrandbits(32))
            self._deadline_ms = sum(kind.share * kind.deadline_ms for kind in scenario.kinds)
            self._n_missed = self._n_answered = 0
            if self._go_on():  # else it was so thin that there never was a choice
                return self._seen()

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool]:
        """Does it and goes on to the next choice: what there is to see, the reward, and whether it is over."""
        simulation = self._simulation
        self._policy.action = action
        simulation.apply(self._policy.decide(self._state))
        goes_on = self._go_on()
        missed = simulation.n_late + simulation.n_dropped
        waited = sum(simulation.latencies_ms[self._n_answered :]) / self._deadline_ms
        reward = -(missed - self._n_missed + 0.15 * waited) / (0.25 * simulation.workload.max_rows)
        self._n_missed, self._n_answered = missed, len(simulation.latencies_ms)
        return self._seen(), reward, not goes_on

    def _go_on(self) -> bool:
        while (state := self._simulation.next_state()) is not None:
            self._state = state
            if self._policy.times.n_calls and (state.n_in_flight or state.n_waiting_requests > 1):
                return True
            self._simulation.apply(self._policy.decide(state))
        return False

    def _seen(self) -> npt.NDArray[np.float32]:
        return np.array(features(self._state, self._policy.times), np.float32)


def environment(config: dict[str, Any]) -> Any:
    """The game as a gymnasium environment. Raises ImportError without gymnasium, which comes with RLlib."""
    import gymnasium

    class Batching(gymnasium.Env):  # type: ignore[misc]
        def __init__(self) -> None:
            self.observation_space = gymnasium.spaces.Box(-3.0, 3.0, (N_FEATURES,), np.float32)
            self.action_space = gymnasium.spaces.Discrete(N_ACTIONS)
            self.game = Game(config.get("seed", 0))

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                self.game = Game(seed)
            return self.game.reset(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, reward, over = self.game.step(int(action))
            return seen, reward, over, False, {}

    return Batching()


def train(minutes: float, seed: int, out: Path) -> None:
    """Trains for about so many minutes of wall time on one process and writes the weights of the actor to `out`.

    Starts a local Ray, because RLlib needs one. Raises ImportError without RLlib.
    """
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    register_env("batching", environment)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    config = (
        PPOConfig()
        .environment("batching", env_config={"seed": seed})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8, rollout_fragment_length=1024)
        .learners(num_learners=0)
        .rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=list(_HIDDEN), fcnet_activation="tanh", vf_share_layers=False)
        )
        .training(
            gamma=0.995,
            lambda_=0.95,
            lr=7e-4,
            train_batch_size_per_learner=8192,
            minibatch_size=1024,
            num_epochs=5,
            entropy_coeff=0.003,
            vf_clip_param=100.0,
            grad_clip=0.5,
        )
        .debugging(seed=seed)
    )
    algorithm = config.build_algo()
    until_s = time.monotonic() + 60.0 * minutes
    n_steps = 0
    while time.monotonic() < until_s:
        runners = algorithm.train()["env_runners"]
        n_steps = int(runners["num_env_steps_sampled_lifetime"])
        print(f"{n_steps:9,d} steps, mean return {runners.get('episode_return_mean', math.nan):.2f}", flush=True)
        write(algorithm.get_module().state_dict(), n_steps, seed, out)
    algorithm.stop()
    ray.shutdown()


def write(weights: dict[str, Any], n_steps: int, seed: int, out: Path) -> None:
    """The actor's part of an RLlib module's weights, as plain JSON."""
    names = [name for name in weights if "actor_encoder" in name or name.startswith("pi.")]
    layers = [
        {
            "weight": np.round(weights[name].double().numpy(), 4).tolist(),
            "bias": np.round(weights[name.removesuffix("weight") + "bias"].double().numpy(), 4).tolist(),
        }
        for name in names
        if name.endswith("weight")
    ]
    made = {"made_by": "python -m planner.policies.training", "n_steps": n_steps, "seed": seed, "layers": layers}
    text = json.dumps(made).replace('"layers": ', '"layers":\n').replace("}, {", "},\n{")
    out.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the learned batching policy.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(WEIGHTS))
    chosen = parser.parse_args()
    train(chosen.minutes, chosen.seed, chosen.out)


if __name__ == "__main__":
    main()
