"""What a checkpoint to resume from has to hold: numbers that can be, where Lightning looks for them."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

STATELESS = ("sgd",)  # optimisers whose state may be empty after a step
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict")


def problem_of(checkpoint: dict[str, Any]) -> str | None:
    """What is wrong with the parts of a checkpoint that it has, in words, or None."""
    for name, problem in PROBLEMS.items():
        if name in checkpoint and problem(checkpoint[name], checkpoint):
            return f"{name}: {problem(checkpoint[name], checkpoint)}"
    return None


def of_weights(weights: object, _: dict[str, Any]) -> str | None:
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(w, Tensor) for w in weights.values())
    ):
        return "no weights by name"
    bad = [name for name, w in weights.items() if w.is_floating_point() and not w.isfinite().all()]
    return f"{bad[0]} is not finite" if bad else None


def of_settings(settings: object, _: dict[str, Any]) -> str | None:
    named = isinstance(settings, dict) and all(isinstance(name, str) for name in settings)
    return None if named else "no settings by name"


def of_step(step: object, _: dict[str, Any]) -> str | None:
    return None if _is_count(step) else f"{step!r:.40}, expected a count"


def of_names(parts: object, _: dict[str, Any]) -> str | None:
    named = isinstance(parts, dict) and all(isinstance(name, str) for name in parts)
    return None if named else "nothing by name"


def of_loops(loops: object, _: dict[str, Any]) -> str | None:
    loop = loops.get("fit_loop") if isinstance(loops, dict) else None
    if not isinstance(loop, dict) or not all(isinstance(loop.get(name), dict) for name in PROGRESS):
        return "no place in the data"
    numbers = list(_leaves([loop[name] for name in PROGRESS[:2]]))
    return None if all(isinstance(n, bool) or _is_count(n) for n in numbers) else "no counts of batches"


def of_optimizers(states: object, checkpoint: dict[str, Any]) -> str | None:
    if not isinstance(states, list) or not states or not all(isinstance(state, dict) for state in states):
        return "none"
    settings = checkpoint.get("hyper_parameters")
    needs = isinstance(settings, dict) and settings.get("optimizer") not in STATELESS
    for state in states:
        groups = state.get("param_groups")
        if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
            return "no groups of parameters"
        for group in groups:
            lr = group.get("lr")
            if isinstance(lr, Tensor) and lr.numel() == 1:
                lr = lr.item()
            if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 <= lr < math.inf:
                return f"a learning rate of {lr!r:.40}"
        if not isinstance(state.get("state"), dict) or (
            not state["state"] and needs and checkpoint.get("global_step") != 0
        ):
            return "nothing after as many steps"
    return None


PROBLEMS = {
    "state_dict": of_weights,
    "hyper_parameters": of_settings,
    "global_step": of_step,
    "epoch": of_step,
    **dict.fromkeys(("callbacks", "place", "conditions", "gradients", "logs"), of_names),
    "loops": of_loops,
    "optimizer_states": of_optimizers,
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value
