"""KV blocks to bytes and back: the rungs of the quality ladder. Pure and synchronous."""
