"""One file, one model: Config and Model."""
