"""The documentation: what is in its pages, and what its site has besides, made from the code."""
