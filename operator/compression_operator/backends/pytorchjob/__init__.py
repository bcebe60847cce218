"""PyTorchJob (kubeflow.org/v1), the first kind of job."""
