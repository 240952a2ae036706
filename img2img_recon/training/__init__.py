"""One training run, whatever the task: options, run folder, batches, checkpoints, trainer."""
