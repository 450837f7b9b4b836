"""The MLflow server of examples/server.sh: which of MLflow's routes are open, and to whom."""
