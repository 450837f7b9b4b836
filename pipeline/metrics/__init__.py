"""One file, one function from evidence to numbers: Config, Evidence and compute."""
