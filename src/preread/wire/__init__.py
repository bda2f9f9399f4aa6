"""Bytes of foreign origin to values and back: ids, tokens, segments, manifests, catalogues. Pure."""
