"""What torch keeps per thread and a new thread has to be given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ThreadState:
    """Grad mode, inference mode, autocast and default device of a thread."""

    grad: bool
    inference: bool
    device: torch.device
    autocast: dict[str, torch.dtype]
    autocast_cache: bool

    @staticmethod
    def current() -> ThreadState:
        """The state of the calling thread."""
        accelerator = torch.accelerator.current_accelerator()
        types = {"cpu", accelerator.type if accelerator is not None else "cpu"}
        return ThreadState(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            device=torch.get_default_device(),
            autocast={t: torch.get_autocast_dtype(t) for t in types if torch.is_autocast_enabled(t)},
            autocast_cache=torch.is_autocast_cache_enabled(),
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Give the calling thread this state for a while."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            if self.device != torch.get_default_device():
                stack.enter_context(self.device)
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=self.autocast_cache))
            yield
