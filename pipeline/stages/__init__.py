"""One file, one DVC stage, run by `python -m pipeline.stages <stage> <key>`.

Stages never import one another; they meet in the files of artifacts.py.
"""
