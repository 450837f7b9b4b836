"""From samples to comparable numbers: features, protocols, uncertainty, checks."""
