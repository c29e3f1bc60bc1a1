"""The training process, the only importer of torch. Run: python -m engine.trainer RUN_DIR

Nobody imports this package; it is started by the supervisor, reads one order, writes files and ends.
"""
