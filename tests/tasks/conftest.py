from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def train() -> Callable[..., None]:
    """Adam on module.loss over batches drawn with a fixed seed, the rate falling to zero."""

    def run(module, data, *, steps=200, lr=1e-2, batch_size=256) -> None:
        parts = data if isinstance(data, tuple) else (data,)
        module.train()
        module.initialise(data)
        optimizer = torch.optim.Adam(module.parameters(), lr=lr)
        for part in module.modules():
            if hasattr(part, "attach"):
                part.attach(optimizer)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(parts[0]), (batch_size,), generator=generator)
            batch = tuple(part[rows] for part in parts)
            optimizer.zero_grad()
            module.loss(batch if isinstance(data, tuple) else batch[0]).backward()
            optimizer.step()
            schedule.step()

    return run
