"""Is every write into an input's memory ordered against the other uses of that memory?

CANN's engine runs a node when its data and control edges allow it, on several streams. A node that writes a cache in
place and a node that reads the same cache are safe only if an edge, direct or through others, puts one before the
other; here everything runs one after another, so a missing edge would stay unseen without this check.
"""

from __future__ import annotations

from .program import Program, Step

# Operators whose result may be the same memory as their input.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "FlattenV2"}


def check(program: Program) -> None:
    """Check that writers and users of each input are ordered.

    Raises:
        ValueError: naming the first pair that no edge orders.
    """
    before = _ancestors(program.steps)
    memory = _memory(program)
    users: dict[str, list[int]] = {}
    writers: dict[str, list[int]] = {}
    for index, step in enumerate(program.steps):
        for name in step.sources():
            if name in memory:
                users.setdefault(memory[name], []).append(index)
        for parameter in step.operator.writes:
            target = step.inputs[parameter]
            if isinstance(target, str) and target in memory:
                writers.setdefault(memory[target], []).append(index)
    for root, indices in writers.items():
        for writer in indices:
            for user in users[root]:
                if user != writer and not (before[writer] >> user) & 1 and not (before[user] >> writer) & 1:
                    raise ValueError(
                        f"CANN graph: {program.steps[writer].name} writes {root} in place and nothing orders it "
                        f"against {program.steps[user].name}; add a control edge (dependencies=[...])"
                    )


def _ancestors(steps: list[Step]) -> list[int]:
    """For each step the set of steps before it, as a bit mask."""
    producer = {output: index for index, step in enumerate(steps) for output in step.outputs}
    number = {step.name: index for index, step in enumerate(steps)}
    before: list[int] = []
    for step in steps:
        mask = 0
        direct = [producer[name] for name in step.sources() if name in producer]
        for index in direct + [number[name] for name in step.after if name in number]:
            mask |= before[index] | (1 << index)
        before.append(mask)
    return before


def _memory(program: Program) -> dict[str, str]:
    """Value name -> the input whose memory it is."""
    memory = {name: name for name in program.inputs.values()}
    for step in program.steps:
        if step.type in VIEWS:
            source = step.inputs["x"]
            if isinstance(source, str) and source in memory:
                memory[step.outputs[0]] = memory[source]
        for parameter, output in zip(step.operator.writes, step.outputs, strict=False):
            source = step.inputs[parameter]
            if isinstance(source, str) and source in memory:
                memory[output] = memory[source]
    return memory
