"""Benchmarks of the inference engine, on a CPU with small models and on a GPU with full-size ones.

* :mod:`procreward.bench.cpu_jobs` - small models, whose answers are compared to the letter.
* :mod:`procreward.bench.device_jobs` - full-size random weights: time, memory, share of the limit.
* :mod:`procreward.bench.sustained` - how many environments a machine sustains with a given scorer.
* :mod:`procreward.bench.measure` - what all of them measure, and against what.

Nothing here downloads anything. Simulators are imported only where their pictures are rendered.
"""
