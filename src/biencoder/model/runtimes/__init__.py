"""Models as files for ONNX Runtime and OpenVINO, which run them without PyTorch."""
