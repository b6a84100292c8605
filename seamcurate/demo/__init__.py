"""The demo: a whole job on data and models that it makes itself."""
