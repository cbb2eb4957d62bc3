from gcp import backend  # noqa: F401  (sets the number of threads before MXNet is imported)
