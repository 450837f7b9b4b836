"""Layers and functions that several models use."""
