"""Which engine trains a study: this machine's own device, or a Ray cluster's."""

from collections.abc import Sequence

from bilinear.errors import ConfigError, shown
from bilinear.experiment.config import SweepConfig
from bilinear.training.backend import Backend
from bilinear.training.choose import DEVICES, choose_for

ENGINES = ("local", "ray")


def choose_engine(
    cells: Sequence[SweepConfig],
    *,
    engine: str,
    fused: bool,
    device: str = "auto",
    ray_address: str | None = None,
) -> Backend:
    """As `choose_for`, on this machine (engine "local") or on a Ray cluster ("ray")."""
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected {', '.join(ENGINES)}, got {shown(engine)}")
    if device not in DEVICES:  # before connecting to a cluster
        raise ConfigError(f"device: expected {', '.join(DEVICES)}, got {shown(device)}")
    if engine == "local":
        if ray_address is not None:
            raise ConfigError("ray address: expected with --engine ray alone, got --engine local")
        return choose_for(cells, fused=fused, device=device)
    if not fused:
        raise ConfigError("engine: ray trains with the fused trainer alone; add --fused")
    from bilinear.training.ray_cluster import RayBackend

    return RayBackend(cells, device=device, address=ray_address)
