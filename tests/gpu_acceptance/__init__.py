"""What a machine with a GPU has to show: `python -m tests.gpu_acceptance`."""
