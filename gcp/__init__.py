"""Global channel pruning (GCP) of MXNet and GluonCV classification networks."""

__version__ = "0.1.0"
