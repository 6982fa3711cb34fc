"""Where the streamed experts of a model come from: what its layers share."""

from __future__ import annotations

from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.expert_layout import ExpertFinder
from mlx_qwen3.model.expert_pool import LayerPool
from mlx_qwen3.model.expert_reader import ExpertReader
from mlx_qwen3.model.inventory import Inventory
from mlx_qwen3.model.operations import Operations
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.residency import ExpertPlan
from mlx_qwen3.model.streamed_experts import StreamedExperts, Turns


class ExpertStore:
    """Makes the streamed experts of each layer. Their files are opened when first read."""

    def __init__(
        self,
        config: ModelConfig,
        inventory: Inventory,
        policy: ComputePolicy,
        operations: Operations,
        plan: ExpertPlan,
    ) -> None:
        self._finder = ExpertFinder(config, inventory, policy.dtype)
        self._policy = policy
        self._operations = operations
        self._plan = plan
        self._reader = ExpertReader()
        self._turns = Turns()

    def experts(self, name: str) -> StreamedExperts:
        """Those of the sparse layer `name`. Raises WeightsError, DeviceError."""
        layout = self._finder.layer(name)
        for one in layout.matrices:
            scaled = "global_scale" in one.parts
            self._policy.refuse_experts(one.parts["weight"].dtype, scaled=scaled)
        pool = LayerPool(layout, self._plan.slots[name], self._reader)
        return StreamedExperts(pool, self._operations.gate, self._turns)
