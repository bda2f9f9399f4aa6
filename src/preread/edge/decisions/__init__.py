"""Decisions: many typed questions about one state, each answered from the probabilities of one token."""
