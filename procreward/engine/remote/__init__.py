"""Engines whose model runs elsewhere: behind a server, or in vLLM.

* :mod:`procreward.engine.remote.served` - OpenAI-compatible servers.
* :mod:`procreward.engine.remote.vllm` - vLLM in this process.
"""
