"""Ground floor: errors, files, locks, seeds, stopping, arithmetic, checkpoints, configs."""
