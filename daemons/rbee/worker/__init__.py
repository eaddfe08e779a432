"""The worker: one process, one model, one device, ONNX Runtime sessions behind an HTTP API."""
