"""Documents in, passages with sources out, scoped by who may read them."""
