"""One tick: the seven stages, in order; what is chosen is tested before it is deployed."""

from dataclasses import dataclass

from xds_server.engine.bottlenecks import find_bottlenecks
from xds_server.engine.deploy import Actuator, Deployment, deploy
from xds_server.engine.evaluate import evaluate
from xds_server.engine.foresee import Foresight, foresee
from xds_server.engine.gain import account
from xds_server.engine.generate import generate
from xds_server.engine.guard import survive
from xds_server.engine.learn import Lesson, learn
from xds_server.engine.revert import review
from xds_server.engine.select import select
from xds_server.engine.simulate import simulate
from xds_server.engine.state import EngineState
from xds_server.engine.trials import follow
from xds_server.engine.types import Bottlenecks, Evaluation, Simulated
from xds_server.model.decision import Decision, Reverted
from xds_server.model.telemetry import PairWindow, ProviderLoad
from xds_server.model.topology import EngineSettings, Mode


@dataclass(frozen=True, slots=True)
class Tick:
    """Everything one tick saw, chose and did; what status and explain are made of."""

    evaluation: Evaluation
    bottlenecks: Bottlenecks
    simulated: Simulated
    decision: Decision
    deployment: Deployment
    lesson: Lesson
    reverted: tuple[Reverted, ...] = ()
    foresight: Foresight | None = None  # None: nothing was to move


def tick(
    state: EngineState,
    window: PairWindow,
    load: ProviderLoad,
    actuator: Actuator,
    settings: EngineSettings,
    mode: Mode,
    *,
    now_s: float,
    elapsed_s: float,
) -> Tick:
    """Run the seven stages once and leave what is to be remembered in ``state``."""
    problem = state.problem
    evaluation, models = evaluate(state, window, load, now_s=now_s, tick_s=elapsed_s)
    bottlenecks = find_bottlenecks(problem, evaluation)
    frozen = state.trials.frozen(now_s)
    candidates = generate(problem, evaluation, state.wanted, frozen, settings)
    simulated = simulate(problem, evaluation, candidates)
    decision = select(problem, evaluation, simulated, mode)
    decision = survive(
        problem, evaluation, decision, state.fragile, turn=round(now_s / settings.tick_s)
    )
    decision, foresight = foresee(
        problem,
        evaluation,
        models,
        candidates.proposed[0].shares,
        decision,
        tick_s=settings.tick_s,
    )
    decision, trials, reverted = review(
        problem,
        evaluation,
        models,
        decision,
        state.trials,
        max_shift_ratio=settings.max_shift_ratio,
        tick_s=settings.tick_s,
    )
    decision = account(problem, evaluation, simulated, decision)
    deployment = deploy(
        problem,
        decision,
        state.shares,
        state.weights,
        state.overlay,
        actuator,
        mode=mode,
        now_s=now_s,
    )
    lesson = learn(
        problem,
        evaluation,
        state.pending,
        models,
        state.last_good,
        settled_s=window.window_s + settings.tick_s,
    )
    state.fragile = decision.fragile
    state.trials = follow(problem, evaluation, models, deployment, trials, tick_s=settings.tick_s)
    state.remember(deployment, decision.wanted, lesson.models, lesson.last_good)
    return Tick(
        evaluation, bottlenecks, simulated, decision, deployment, lesson, reverted, foresight
    )
