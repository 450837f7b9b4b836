"""One file, one data source: Config, fetch and prepare."""
