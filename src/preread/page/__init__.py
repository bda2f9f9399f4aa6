"""The pages that an edge and a cloud show at their root: values in, HTML out, and the routes that both have."""
