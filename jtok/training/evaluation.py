"""Mean of a task's per-row numbers over its held-out rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jtok.errors import UserError
from jtok.sharding import local_parts, make_mesh, whole
from jtok.training.sharding import put_batch
from jtok.training.task import Batch, Task


def pad_rows(batch: Batch, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The batch filled up to `rows` by repeating its last row, and a mask `[rows]` of the rows that count."""
    count = len(next(iter(batch.values())))
    take = np.minimum(np.arange(rows), count - 1)
    valid = (np.arange(rows) < count) & np.asarray(batch.get("valid", np.ones(count, bool)), bool)[take]
    padded = {name: np.asarray(array)[take] for name, array in batch.items()}
    return (padded | {"valid": valid} if "valid" in batch else padded), valid


class Evaluator:
    """Runs `task.evaluate`, compiled once, over `task.eval_data()`."""

    def __init__(self, task: Task, mesh: Mesh | None = None):
        self.task = task
        self.mesh = mesh or make_mesh()
        self._sums = jax.jit(self._row_sums, out_shardings=whole(self.mesh))

    def _row_sums(self, params: PyTree[Array], batch: dict[str, Array], valid: Array):
        rows = self.task.evaluate(params, batch)
        sums = {name: jnp.sum(jnp.where(valid, x.astype(jnp.float32), 0.0)) for name, x in rows.items()}
        return sums, jnp.sum(valid)

    def __call__(self, params: PyTree[Array]) -> dict[str, float]:
        """Mean over all valid rows of every metric. Raises UserError if there are none."""
        with jax.set_mesh(self.mesh):
            return self._mean(params)

    def _mean(self, params: PyTree[Array]) -> dict[str, float]:
        totals: dict[str, float] = {}
        count = rows = 0
        parts = len(local_parts(self.mesh))
        for batch in self.task.eval_data():
            size = len(next(iter(batch.values())))
            # A short last batch takes the shape of those before it: no second compilation.
            rows = max(rows, -(-size // parts) * parts)
            padded, valid = pad_rows(batch, rows)
            on_device = put_batch(padded | {"_valid": valid}, self.mesh)
            valid = on_device.pop("_valid")
            sums, number = jax.device_get(self._sums(params, on_device, valid))
            count += int(number)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if not count:
            raise UserError("the evaluation data have no rows: give at least one")
        return {name: total / count for name, total in totals.items()}
