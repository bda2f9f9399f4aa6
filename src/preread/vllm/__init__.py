"""vLLM as the reader: contexts that it read go into preread's store, and published ones come into its cache.

`connector.py` is what vLLM loads, and the only home of vLLM; PyTorch has `pages.py` besides. The rest knows neither.
"""
