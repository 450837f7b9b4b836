"""How a training runs on hardware: processes, checkpoints, signals. Nothing here can change a number."""
