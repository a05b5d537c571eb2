"""Named sets of hyper-parameters, each the settings in which it differs from SweepConfig's own."""

from typing import Any

from bilinear.experiment.schedule import Schedule

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The notebook's protocol: minibatches, at most 600 epochs, stop at the first epoch that ends
    # with every validation pair right.
    "notebook": {
        "batch_size": 64,
        "epochs": 600,
        "lr": Schedule(3e-3, 3e-3),
        "weight_decay": Schedule(3e-4, 3e-4),
        "betas": (0.9, 0.999),
        "goal": "val",
        "hold": 1,
    },
}
