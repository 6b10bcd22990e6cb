"""A task of nobody in particular, as Inspect runs it: letters, several values, several calls."""

from __future__ import annotations

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, includes, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver


@scorer(metrics={"*": [mean()]})
def parts() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion
        return Score(value={"short": len(said) < 10, "right": float(target.text in said)})

    return score


@scorer(metrics=[mean()])
def share() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        return Score(
            value=0.5,
            explanation="half of it",
            metadata={"spans": [{"start": 0, "end": 2, "label": "supported"}]},
        )

    return score


@solver
def asks_twice() -> Solver:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state = await generate(state)
        state.messages.append(ChatMessageUser(content="Are you sure?"))
        return await generate(state)

    return solve


def samples() -> list[Sample]:
    return [
        Sample(id=f"{n} and {n}", input=f"What is {n} + {n}?", target=str(2 * n)) for n in (1, 2, 3)
    ]


@task
def toy(twice: bool = False, epochs: int = 1) -> Task:
    return Task(
        dataset=MemoryDataset(samples()),
        solver=asks_twice() if twice else generate(),
        scorer=[includes(), parts(), share()],
        epochs=Epochs(epochs, "mean"),
    )
