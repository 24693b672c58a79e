"""Where each process of a plan goes: on which node and GPU, beside which others."""

from collections import defaultdict

from rpa_ray.plan.checks.gpus import cell_memory, holding_most
from rpa_ray.plan.checks.machine import placed_on_paper
from rpa_ray.plan.memory import total
from rpa_ray.plan.plan import Plan


def place_notes(plan: Plan) -> list[str]:
    """Return in lines what lies on every GPU of ``cluster.machines``; nothing without them.

    GiB are those of :func:`holding_most`.
    """
    settings = plan.cells[0].settings
    machines = settings.cluster.machines
    if machines is None or not machines.gpus_per_node:
        return []
    every = {
        cell.name: memory
        for cell, inputs in zip(plan.cells, plan.all_inputs, strict=True)
        if (memory := cell_memory(inputs)) is not None
    }
    most = holding_most(every, is_colocated=settings.cluster.is_colocated)
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    for one in placed_on_paper(settings, plan.num_at_once):
        kind, cell = one.worker.kind, f"cell {one.cell} " * (plan.num_at_once > 1)
        gib = f" {total(most[kind][1]):.1f} GiB" if kind in most else ""
        for gpu in one.gpus:
            names[one.node, gpu].append(f"{cell}{kind.replace('_', ' ')} {one.number}{gib}")
    return [
        f"node {node}, GPU {gpu} of {machines.gib_per_gpu:g} GiB: {', '.join(names[node, gpu])}"
        for node, gpu in sorted(names)
    ]
