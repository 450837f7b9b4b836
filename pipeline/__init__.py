"""Generative experiment pipeline: DVC stages, Lightning models, torch-fidelity metrics, MLflow records."""
