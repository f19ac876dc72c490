"""Checks any server of the Open Inference Protocol for what its stock clients rely on."""
