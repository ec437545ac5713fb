"""How fast the engine is, and whether it answers as plain transformers does.

On the CPU small models of the true architectures run in float32 on one thread::

    python benchmarks/engine.py --device cpu --out engine_cpu.json
    python benchmarks/engine.py --device cpu --job procvlm_env16

and on a GPU full-size random weights in bfloat16::

    python benchmarks/engine.py --device cuda --out engine_cuda.json

(``--device cpu --size tiny`` runs the same code on small models.) Both baselines are measured in
the same run, in turns with ours: the documented path, one question at a time through
transformers' ``generate`` or full forward passes, and its own batched ``generate`` or forward.
They are given our prompts and our preprocessing, which are faster than those they come with.

A goal that is missed is said to be; the exit status is 0 nonetheless.
"""

from procreward.bench.script import main

if __name__ == "__main__":
    main(print)
