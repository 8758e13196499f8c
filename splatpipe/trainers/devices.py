"""Which GPU a child sees."""

from __future__ import annotations

from collections.abc import Mapping


def visible_devices(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which only `device` ("cuda:1", counted as the parent does) is there, or no GPU for "cpu"."""
    env = dict(environment)
    if device.startswith("cuda"):
        visible = env.get("CUDA_VISIBLE_DEVICES", "")
        devices = [one.strip() for one in visible.split(",")] if visible else []
        index = int(device.partition(":")[2] or 0)
        env["CUDA_VISIBLE_DEVICES"] = devices[index] if devices else str(index)
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env
