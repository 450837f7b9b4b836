"""One file, one feature network."""
