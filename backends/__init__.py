"""Model servers: each answers a request as a stream of typed pieces."""
