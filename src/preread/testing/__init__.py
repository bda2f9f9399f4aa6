"""Stand-ins that run for real: what tests, benchmarks and the demo use in place of a wide-area network.

Nothing in the package itself imports this.
"""
