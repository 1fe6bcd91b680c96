"""verl on the CPU: the platform that verl itself does not have, with gloo between the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, set_platform

# What verl asks of `torch.cuda` besides what `torch.cpu` has: figures of a memory that the CPU does not account for.
CPU = SimpleNamespace(
    **{name: getattr(torch.cpu, name) for name in ("synchronize", "current_device", "device_count", "is_available")},
    empty_cache=lambda: None,
    max_memory_allocated=lambda: 0,
    max_memory_reserved=lambda: 0,
    memory_allocated=lambda: 0,
    memory_reserved=lambda: 0,
    mem_get_info=lambda: (0, 0),
    set_device=lambda device: None,
    get_device_name=lambda: "CPU",
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
)


class CpuPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "generic"
    device_module = CPU  # type: ignore[assignment]

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return torch.device("cpu")  # the CPU has no index

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CPU_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


set_platform(CpuPlatform())
