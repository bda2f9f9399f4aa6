"""Fitting what a codec needs to know of a model, and measuring what a codec does to it: with the engine, off-line."""
