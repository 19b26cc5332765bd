"""Benchmarks: ldmkit beside diffusers on the same shapes, with the same random weights, interleaved in one process.

Run from the root of the repository: ``python -m tests.benchmarks [NAME ...]``, or one alone, as
``python -m tests.benchmarks.decode``. Without diffusers what ldmkit does alone is measured, and the tables say so.
"""
